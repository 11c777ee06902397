"""Selection and text arms inside whole trials on an untrained model, and gradient norms of
unlearning against brute force.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from rayunlearn.canonical import canonical_trial
from rayunlearn.config import Trial, Value, block_numbers, with_values
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import UserError
from rayunlearn.keywords.ablation import keyword_positions
from rayunlearn.keywords.phrases import Keyword
from rayunlearn.keywords.rows import keyword_rows, keywords_from
from rayunlearn.keywords.words import words_of
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import paired_response_kinds, reference_kinds
from rayunlearn.methods.objective import (
    ObjectiveSettings,
    PairedResponses,
    Side,
    UnlearningObjective,
)
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.token_mask import TokenRule
from rayunlearn.models.reference import Reference, reference_of
from rayunlearn.planning.backend import can_divide
from rayunlearn.planning.run_tables import write_corpora
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of
from rayunlearn.selectors import cost
from rayunlearn.selectors.table import SELECTORS
from rayunlearn.selectors.unlearning_gradients import unlearning_norms
from rayunlearn.storage.run import open_run
from rayunlearn.train.loop import Callbacks, OptimizerSettings, TrainedParameters, optimise
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.coreset import select_coreset
from rayunlearn.trial.keywords import coreset_sequences, document_texts, forget_keywords
from rayunlearn.trial.model_state import ModelState, reset_weights
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.unlearn import gradient_norms_along, objective_sides, select_documents
from rayunlearn.trial.workspace import Workspace, validate_trial
from tests.tiny_models import SEQUENCES, tiny_model

QUICK: dict[str, Value] = {
    "train.length": 2,
    "train.batch_size": 4,
    "method.layer": 1,
    "grand.epochs": 1,
}


@pytest.fixture(scope="module")
def workspace(workspace: Workspace, untaught_models: Path) -> Workspace:
    """A tenth of the domain corpus, with another model that knows nothing as gold."""
    whole = workspace.corpus
    corpus = replace(
        whole,
        forget=whole.forget[:16],
        retain=whole.retain[:16],
        probes={k: v[:8] for k, v in whole.probes.items()},
    )
    return replace(workspace, corpus=corpus, gold=str(untaught_models / "gold"))


@pytest.fixture
def state(workspace: Workspace) -> ModelState:
    return reset_weights(workspace.base)


def trial_of(**values: Value) -> Trial:
    return validate_trial(
        with_values(
            Trial(), QUICK | {name.replace("__", "."): value for name, value in values.items()}
        )
    )


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector_keeps_the_exact_number_in_a_trial_and_leaves_the_base_weights(
    name: str, workspace: Workspace, state: ModelState
) -> None:
    kept, scores = select_documents(
        TrialContext(trial_of(select__name=name, select__ratio=0.25), workspace, state)
    )
    assert (
        len(kept) == len(set(kept)) == 4
        and scores.shape == (16,)
        and bool(torch.isfinite(scores).all())
    )
    again, _ = select_documents(
        TrialContext(trial_of(select__name=name, select__ratio=0.5), workspace, state)
    )
    assert again[:4] == kept
    assert all(
        torch.equal(state.model.state_dict()[key].cpu(), value)
        for key, value in state.pristine.items()
    )


def test_scores_of_grand_depend_on_the_losses_and_those_of_others_do_not(
    workspace: Workspace, state: ModelState
) -> None:
    def scores(**values: Value) -> Tensor:
        return select_documents(
            TrialContext(trial_of(select__ratio=0.25, **values), workspace, state)
        )[1]

    assert not torch.equal(
        scores(select__name="grand", method__forget="ga"),
        scores(select__name="grand", method__forget="simnpo"),
    )
    assert torch.equal(
        scores(select__name="el2n", method__forget="ga"),
        scores(select__name="el2n", method__forget="simnpo"),
    )


@pytest.mark.parametrize(
    "extractor",
    ["tfidf", "log_odds", "linked", "slots", "textrank", "embedding", "loss_gap", "gradient_gap"],
)
def test_every_extractor_runs_inside_a_trial_and_its_keywords_come_back_from_disk(
    extractor: str, workspace: Workspace, state: ModelState
) -> None:
    trial = trial_of(select__extractor=extractor)
    found = forget_keywords(TrialContext(trial, workspace, state))
    assert len(found) == 16
    state.cache.clear()
    assert forget_keywords(TrialContext(trial, workspace, state)) == found
    for document, keywords in zip(workspace.corpus.forget, found, strict=True):
        assert all(
            document.answer[a:b].split() == k.text.split() or k.spans[0] != (a, b)
            for k in keywords
            for a, b in k.spans
        )


def test_the_judge_needs_a_model_and_says_so(workspace: Workspace, state: ModelState) -> None:
    with pytest.raises(UserError, match=r"select\.judge_model"):
        forget_keywords(TrialContext(trial_of(select__extractor="judge"), workspace, state))


def test_text_arms_split_each_document_and_record_the_share_that_is_left(
    workspace: Workspace, state: ModelState
) -> None:
    kept = [3, 1, 7]
    trial = {
        arm: trial_of(select__text=arm)
        for arm in (
            "original",
            "keywords_only",
            "non_keywords",
            "random_words",
            "shuffled_keywords",
        )
    }
    shown = {
        arm: document_texts(TrialContext(t, workspace, state), kept) for arm, t in trial.items()
    }
    found = forget_keywords(TrialContext(trial["keywords_only"], workspace, state))
    for p in kept:
        answer = workspace.corpus.forget[p].answer
        words = words_of(answer)
        chosen = keyword_positions(words, found[p], 0.3)
        count = {arm: len(shown[arm][p].split()) for arm in shown}
        assert shown["original"][p] == answer and shown["keywords_only"][p].split() == [
            answer[words[i].start : words[i].end] for i in chosen
        ]
        assert (
            count["keywords_only"]
            == count["random_words"]
            == count["shuffled_keywords"]
            == len(words) - count["non_keywords"]
        )
        assert sorted(shown["shuffled_keywords"][p].split()) == sorted(
            shown["keywords_only"][p].split()
        )
    positions, sequences, share = coreset_sequences(
        TrialContext(trial["keywords_only"], workspace, state), kept
    )
    assert (
        positions == kept
        and [s.doc_id for s in sequences] == [workspace.corpus.forget[p].doc_id for p in kept]
        and 0.1 < share < 0.5
    )
    assert coreset_sequences(TrialContext(trial["original"], workspace, state), kept)[2] == 1.0


def test_random_words_change_with_the_seed(workspace: Workspace, state: ModelState) -> None:
    first, second = (
        document_texts(
            TrialContext(
                trial_of(select__text="random_words", select__seed=seed), workspace, state
            ),
            [0, 1],
        )
        for seed in (0, 1)
    )
    assert first != second


def test_an_arm_that_leaves_nothing_is_an_error_and_a_document_without_words_is_left_out(
    workspace: Workspace, state: ModelState
) -> None:
    one_word = Corpus(
        name="words",
        forget=(Document(answer="Tubril"), Document(answer="Kitace glows amber at night.")),
        retain=(),
        probes={},
        extra_training={},
    )
    small = replace(workspace, corpus=one_word)
    trial = trial_of(select__text="non_keywords")
    assert list(document_texts(TrialContext(trial, small, state), [0, 1])) == [1]
    with pytest.raises(
        UserError,
        match=r"select\.text must leave a word of at least one document, got 'non_keywords'",
    ):
        document_texts(TrialContext(trial, small, state), [0])


def test_a_trial_records_its_text_and_coverage_and_base_its_redundancy(
    workspace: Workspace, tmp_path: Path
) -> None:
    for trial in (
        trial_of(select__text="keywords_only", select__ratio=0.5),
        trial_of(stage="base"),
    ):
        assert run_trial(trial, workspace, tmp_path, "test", "1") == "complete", (
            open_run(tmp_path).trials.select("error", "error_where").collect()
        )
    rows = {row["stage"]: row for row in open_run(tmp_path).trials.collect().to_dicts()}
    unlearned, base = rows["unlearned"], rows["base"]
    assert (
        unlearned["select.text"] == "keywords_only"
        and 0.1 < unlearned["text_kept"] < 0.5
        and 0.3 < unlearned["keyword_coverage"] < 1
    )
    assert (
        base["near_duplicate_share"] == 0
        and 1 < base["effective_rank"] < 16
        and 0 < base["keyword_curve_05"] < base["keyword_curve_25"] < 1
    )
    assert unlearned["effective_rank"] is None and base["text_kept"] is None


def test_a_run_with_a_scoring_selector_has_its_scores_in_a_table(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Of every forget document; those of the coreset are the scores that it was chosen by. The
    driver writes the table of what is in the cache, which other runs share.
    """
    trial = trial_of(select__name="loss", select__ratio=0.25)
    assert run_trial(trial, workspace, tmp_path, "test", "1") == "complete"
    write_corpora(tmp_path, workspace.cache, [workspace])
    run = open_run(tmp_path)
    scores = run.scores.filter(pl.col("scorer") == "loss").collect()
    documents = [document.doc_id for document in workspace.corpus.forget]
    assert sorted(scores["doc_id"]) == sorted(documents)
    kept = run.coresets.collect()
    assert kept.height == len(documents) // 4
    beside = kept.join(scores, on="doc_id", validate="1:1")
    assert beside["score"].to_list() == beside["value"].to_list()


def test_the_selector_is_dropped_at_the_whole_set_and_the_text_is_not() -> None:
    trial = with_values(
        Trial(),
        {
            "select.name": "min_k",
            "select.seed": 3,
            "select.text": "keywords_only",
            "select.extractor": "linked",
        },
    )
    whole = canonical_trial(trial, check=validate_trial).select
    assert (whole.name, whole.seed, whole.text, whole.extractor) == (
        "random",
        0,
        "keywords_only",
        "linked",
    )
    assert (
        canonical_trial(
            with_values(trial, {"select.text": "random_words"}), check=validate_trial
        ).select.seed
        == 3
    )
    assert (
        canonical_trial(
            with_values(trial, {"select.text": "original"}), check=validate_trial
        ).select
        == Trial().select
    )


def test_topics_share_a_coreset_out_unless_told_otherwise(
    workspace: Workspace, state: ModelState
) -> None:
    documents = tuple(
        Document(answer=f"Kitace {n}", topic="a" if n < 6 else "b") for n in range(12)
    )
    two = replace(
        workspace,
        corpus=Corpus(name="topics", forget=documents, retain=(), probes={}, extra_training={}),
    )

    def of_topic_a(stratified: bool, seed: int) -> int:
        trial = with_values(
            trial_of(select__ratio=0.5), {"select.stratified": stratified, "select.seed": seed}
        )
        return sum(
            p < 6
            for p in select_coreset(
                TrialContext(trial, two, state), lambda order, epochs: torch.zeros(1, 12)
            )[0]
        )

    assert (
        {of_topic_a(True, seed) for seed in range(8)}
        == {3}
        != {of_topic_a(False, seed) for seed in range(8)}
    )


@pytest.mark.parametrize("name", ["k_center", "herding", "craig", "keyword_coverage"])
def test_a_stratified_coreset_is_the_same_however_few_documents_are_ranked_at_first(
    name: str, workspace: Workspace, state: ModelState, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = [
        replace(d, topic="a" if n < 12 else "b") for n, d in enumerate(workspace.corpus.forget)
    ]
    two = replace(workspace, corpus=replace(workspace.corpus, forget=tuple(forget)))
    context = TrialContext(trial_of(select__name=name, select__ratio=0.25), two, state)
    whole, _ = select_documents(context)
    monkeypatch.setattr(cost, "RANKED_WHOLE", 0)
    part, scores = select_documents(context)
    assert part == whole and float(scores.min()) > -16


def test_keywords_survive_the_trip_through_the_table() -> None:
    found = [
        [Keyword("b", 2.0, ((0, 1), (4, 5))), Keyword("a", 2.0, ((2, 3),))],
        [],
        [Keyword("c", -1.0, ((0, 1),))],
    ]
    table = pl.DataFrame(keyword_rows("digest", "tfidf", ["x", "y", "z"], found))
    assert keywords_from(table, ["x", "y", "z"]) == found and table.height == 4


def side_of(loss: object, function: object, temperature: float = 1.0) -> Side:
    """A side of three documents, its companions and reference at the temperature."""
    model = tiny_model()
    kinds = reference_kinds(function)
    companions = {
        kind: PairedResponses(
            {s.doc_id: [t] for s, t in zip(SEQUENCES, SEQUENCES[1:] + SEQUENCES[:1], strict=True)},
            Reference({}),
        )
        for kind in paired_response_kinds(function)
    }
    for kind, made in companions.items():
        asked = reference_kinds(function, kind)
        reference = reference_of(model, SEQUENCES, asked, 1, temperature)
        companions[kind] = replace(made, reference=reference)
    reference = reference_of(model, SEQUENCES, kinds, 1, temperature)
    return Side(loss, SEQUENCES, reference, companions, TokenRule(temperature=temperature))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("retain", ["none", "nll", "kl", "activation"])
@pytest.mark.parametrize("forget", sorted(FORGET))
def test_unlearning_norms_are_those_of_each_document_alone(
    forget: str, retain: str, temperature: float
) -> None:
    """Every forget loss with every retain loss, on a model that has moved from its reference; alone
    = a side of one document. The forget loss's temperature is that of its companions too.
    """
    function, keeping = FORGET[forget].function, RETAIN[retain].function
    if not required_inputs(function):
        pytest.skip("a loss that looks at no document has no gradient of one")
    model = tiny_model(seed=3)
    sides = (
        side_of(partial(function), function, temperature),
        side_of(partial(keeping), keeping),
    )
    weights = {"forget_weight": 0.3, "retain_weight": 0.7}
    norms = partial(unlearning_norms, model, layer=1, seed=0, **weights)
    expected = [
        by_hand(model, *(replace(side, sequences=[side.sequences[i]]) for side in sides))
        for i in range(3)
    ]
    assert norms(*sides).tolist() == pytest.approx(expected, rel=2e-3, abs=1e-5)


def by_hand(model: torch.nn.Module, forget: Side, retain: Side) -> float:
    """The norm for one document, by `UnlearningObjective` itself and an ordinary backward."""
    model.zero_grad()
    settings = ObjectiveSettings(
        forget_weight=0.3, retain_weight=0.7, layer=1, batch_size=1, seed=0
    )
    whole = UnlearningObjective(model, forget, retain, settings)
    whole(0).total.backward()
    return float(
        torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None])
        .sum()
        .sqrt()
    )


def test_losses_that_can_be_batched_are_and_give_the_same_in_any_batch() -> None:
    model, function = tiny_model(seed=3), FORGET["npo"].function
    forget, retain = (
        side_of(partial(function), function),
        side_of(partial(RETAIN["none"].function), RETAIN["none"].function),
    )
    norms = partial(unlearning_norms, model, forget, retain, retain_weight=0.7, layer=1, seed=0)
    torch.testing.assert_close(norms(tokens_per_batch=8), norms(tokens_per_batch=4096))


TRAJECTORY: dict[str, Value] = {
    "select.name": "grand",
    "train.learning_rate": 1e-3,
    "train.schedule": "constant",
    "train.warmup_fraction": 0.3,
    "stop.utility_floor": 0.9,
    "stop.check_every": 1,
}
TEN = tuple(range(10))


# sizes that do not divide, divide and exceed the documents; more of each in the slow suite
@pytest.mark.parametrize(
    "batch_size",
    [1, 4, 10, 16, *(pytest.param(size, marks=pytest.mark.slow) for size in (5, 8, 32))],
)
def test_ten_documents_and_ten_epochs_are_looked_at_eleven_times_at_any_batch_size(
    batch_size: int, workspace: Workspace, state: ModelState
) -> None:
    """The base model once and each epoch's end once, whatever warm-up the trial has. Norms of
    different steps differ, so a row that came twice would be equal to another: only where one step
    ends several epochs is it, and base never is.
    """
    trial = trial_of(**_dotted(TRAJECTORY | {"train.batch_size": batch_size}))
    norms = gradient_norms_along(TrialContext(trial, workspace, state), TEN, 10)
    ends = [math.ceil(10 * epoch / batch_size) for epoch in range(1, 11)]
    assert norms.shape == (11, 10) and bool(torch.isfinite(norms).all())
    assert len({tuple(row) for row in norms.tolist()}) == 1 + len(set(ends))
    assert not any(torch.equal(norms[0], row) for row in norms[1:])


def _dotted(values: dict[str, Value]) -> dict[str, Value]:
    return {name.replace(".", "__"): value for name, value in values.items()}


CASES: dict[str, dict[str, Value]] = {
    "npo in batches that epochs do not end with": {"train.batch_size": 4},
    "a step of several epochs": {"train.batch_size": 16},
    "a task vector, looked at before it is subtracted": {
        "method.forget": "task_vector",
        "method.retain": "none",
        "negate.scale": 5.0,
    },
    "an average of weights, looked at before it is taken": {
        "method.wrappers": "average",
        "average.start": 0.1,
        "average.every": 1,
    },
    "companions at a temperature": {"method.forget": "dpo", "token.temperature": 2.0},
    "one block alone": {"train.layers": "1"},
    "a retain weight that moves": {"method.forget": "pdu", "method.retain_weight": 2.0},
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_norms_along_a_run_are_those_of_a_model_trained_to_each_epoch_and_stopped(
    values: dict[str, Value], workspace: Workspace, state: ModelState
) -> None:
    """By brute force: at a constant rate a run of k epochs is the beginning of a longer one. So a
    model is trained anew to each epoch's end by the loop itself, without what a method does after
    the last step, and its norms are those of an ordinary backward pass per document.
    """
    trial = trial_of(**_dotted(TRAJECTORY | values))
    norms = gradient_norms_along(TrialContext(trial, workspace, state), TEN, 3)
    assert all(
        torch.equal(tensor.cpu(), state.pristine[name])
        for name, tensor in state.model.state_dict().items()
    )
    forget, retain = objective_sides(TrialContext(trial, workspace, state), TEN)
    # z_r: the first ten of the retain documents in the order of the trial's seed
    first = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()[:10]
    ends = [math.ceil(10 * epoch / trial.train.batch_size) for epoch in range(4)]
    for row, steps in zip(norms, ends, strict=True):
        reset_weights(workspace.base)
        trained_to(trial, state, forget, retain, steps)
        expected = [
            norm_by_backward(trial, state, one(forget, at), one(retain, first[at])) for at in TEN
        ]
        assert row.tolist() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    reset_weights(workspace.base)


def one(side: Side, at: int) -> Side:
    """The side of one document."""
    return replace(side, sequences=[side.sequences[at]]) if side.sequences else side


def objective_of(
    trial: Trial, state: ModelState, forget: Side, retain: Side, size: int
) -> UnlearningObjective:
    row = FORGET[trial.method.forget]
    return UnlearningObjective(
        state.model,
        forget,
        retain,
        ObjectiveSettings(
            retain_weight=trial.method.retain_weight,
            layer=trial.method.layer,
            batch_size=size,
            seed=0,
            weighting=partial(row.weighting, **arguments_of(trial, row.weighting)),
        ),
    )


def trained_to(trial: Trial, state: ModelState, forget: Side, retain: Side, steps: int) -> None:
    """Train the model for so many steps at the trial's rate, and leave it as training left it."""
    terms = objective_of(trial, state, forget, retain, trial.train.batch_size)
    optimise(
        state.model,
        terms,
        steps=steps,
        optimizer=OptimizerSettings(
            learning_rate=trial.train.learning_rate, schedule="constant", warmup_fraction=0.0
        ),
        trained=TrainedParameters(layers=block_numbers(trial.train.layers)),
        callbacks=Callbacks(after_step=terms.after_step),
    )


def norm_by_backward(trial: Trial, state: ModelState, forget: Side, retain: Side) -> float:
    state.model.zero_grad(set_to_none=True)
    objective_of(trial, state, forget, retain, 1)(0).total.backward()
    squares = [p.grad.square().sum() for p in state.model.parameters() if p.grad is not None]
    state.model.zero_grad(set_to_none=True)
    return float(torch.stack(squares).sum().sqrt())


def test_a_trajectory_that_diverges_ends_grand_with_words_and_no_score(
    workspace: Workspace, state: ModelState
) -> None:
    trial = trial_of(**_dotted(TRAJECTORY | {"train.learning_rate": 1e30, "method.forget": "ga"}))
    rule = "grand needs an unlearning run whose loss stays finite over its epochs; this one"
    with pytest.raises(UserError, match=rule):
        gradient_norms_along(TrialContext(trial, workspace, state), TEN, 3)


def test_a_selector_that_trains_is_refused_on_several_processes_before_anything_is_scheduled() -> (
    None
):
    """Its norms are those of one whole model, and the processes would wait for each other."""
    with pytest.raises(UserError, match=r"select\.name must be no selector that trains a model"):
        can_divide(trial_of(select__name="grand"), 2)
    can_divide(trial_of(select__name="min_k"), 2)


@pytest.mark.parametrize("forget", ["npo", "dpo", "rmu"])
def test_norms_in_bfloat16_are_the_float32_ones_but_for_rounding(forget: str) -> None:
    """As on a GPU: products in bfloat16, gradients of float32 weights."""
    model, function = tiny_model(seed=3), FORGET[forget].function
    keeping = RETAIN["nll"].function
    chosen = side_of(partial(function), function), side_of(partial(keeping), keeping)
    norms = partial(unlearning_norms, model, *chosen, retain_weight=0.7, layer=1, seed=0)
    exact = norms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = norms()
    assert lower.tolist() == pytest.approx(exact.tolist(), rel=0.1)
