"""A trial that explains, on an untrained model of seconds: its rows, its paths, and the same made
again for one that did not explain.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from transformers import PreTrainedModel

from rayunlearn.analysis.attribution import emphasis_table
from rayunlearn.attribution.emphasis import EMPHASIS_FORMS
from rayunlearn.config import Trial, with_values
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import encode_pair
from rayunlearn.errors import UserError
from rayunlearn.keywords.statistics import statistics_of
from rayunlearn.keywords.stopwords import ENGLISH
from rayunlearn.models.load import load_model
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table
from rayunlearn.trial import model_state
from rayunlearn.trial.context import TrialContext, base_context
from rayunlearn.trial.explain import emphasis_words, explain_trial, kinds_of_words
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.load import load_trial
from rayunlearn.trial.rebuild import rebuild_model
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.weight_paths import between_trials
from rayunlearn.trial.workspace import Workspace, validate_trial, workspace_of
from tests.conftest import Bed

BASE = {
    "model.teach": False,
    "train.length": 3,
    "train.batch_size": 2,
    "train.learning_rate": 3e-3,
    "method.forget": "ga",
    "method.retain": "nll",
}
ASKED = {
    "explain.documents": 2,
    "explain.path_points": 3,
    "explain.wording": "{words}.",
    "select.ratio": 0.1,
}
# the same, of one split and one metric
FEW = {"measure.metrics": "probability", "explain.splits": "forget", "explain.path_points": 0}


@pytest.fixture(scope="module")
def ended(
    untaught_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Run, dict[str, str]]]:
    """A run with the trials `full` (explains nothing), `part` (explains, a tenth of the set), `few`
    (explains one split of it) and `plain` (the same tenth, explains nothing), by name.
    """
    folder = tmp_path_factory.mktemp("explains")
    ids = {}
    plain = BASE | {"select.ratio": ASKED["select.ratio"]}
    trials = {"full": BASE, "part": BASE | ASKED, "few": BASE | ASKED | FEW, "plain": plain}
    for name, values in trials.items():
        trial = validate_trial(
            with_values(Trial(), values | {"model.name": str(untaught_models / "base")})
        )
        ids[name] = identify_trial(trial)
        assert (
            run_trial(
                trial,
                workspace_of(trial, folder / "runs" / "cache"),
                folder / "runs" / "test" / "1",
                "test",
                "1",
            )
            == "complete"
        )
    yield open_run(folder / "runs" / "test" / "1"), ids
    model_state.load_model_state.cache_clear()


def test_explanations_leave_training_and_metrics_as_they_are(
    ended: tuple[Run, dict[str, str]],
) -> None:
    """Base and the trained model are one model of this process, which asking base resets: the same
    rows to the last bit say that it was asked before, and that the full-set twin was taken out.
    """
    run, ids = ended
    keys = ["split", "doc_id", "metric"]
    explained, plain = (
        run.examples.filter(
            pl.col("trial_id") == ids[name],
            pl.col("attack") == "none",
            ~pl.col("split").str.ends_with("_documents"),
        )
        .select(*keys, "value")
        .sort(keys)
        .collect()
        for name in ("part", "plain")
    )
    assert len(plain) > 100 and explained.equals(plain)


def test_what_is_answered_right_is_measured_wherever_questions_are_explained(
    ended: tuple[Run, dict[str, str]],
) -> None:
    """Without it nothing could be counted that emphasis recovers, whatever metrics were asked for;
    of the questions that are asked the values are those of a trial that measures more.
    """
    run, ids = ended
    rows = run.examples.collect()
    few, part = (rows.filter(pl.col("trial_id") == ids[name]) for name in ("few", "part"))
    plain = few.filter(attack="none", split="forget")
    assert set(plain["metric"]) == {"probability", "exact_memorization"}
    emphasised = pl.col("attack").str.starts_with("emphasis")
    of_few = few.filter(emphasised)
    assert set(of_few["split"]) == {"forget"}
    assert set(of_few["metric"]) == {"probability", "exact_memorization"}
    keys = ["attack", "split", "doc_id", "metric"]
    of_part = part.filter(emphasised, pl.col("split") == "forget")
    assert set(of_part["metric"]) > set(of_few["metric"])
    both = of_few.join(of_part, on=keys, suffix="_part")
    assert len(both) == len(of_few) and both["value"].equals(both["value_part"].rename("value"))
    assert set(run.attributions.filter(pl.col("trial_id") == ids["few"]).collect()["split"]) == {
        "forget"
    }


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ("forget,untuched", "did you mean 'untouched'"),
        # a set that trials make for membership metrics, of which no question is taken apart
        ("members", "known: forget, holdout, retain, untouched"),
    ],
)
def test_a_split_to_explain_that_the_data_does_not_have_is_refused(
    splits: str, said: str, untaught_models: Path
) -> None:
    values = {"model.name": str(untaught_models / "base"), "explain.splits": splits}
    trial = with_values(Trial(), BASE | values | {"explain.documents": 2})
    with pytest.raises(UserError, match=rf"split in explain.splits .*{said}"):
        validate_trial(trial)


def test_time_of_explanations_is_a_part_of_its_own(
    ended: tuple[Run, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only the weight paths move, by 5 s: none of it is time of the metrics."""
    run, ids = ended
    rows = {row["trial_id"]: row for row in run.trials.collect().to_dicts()}
    assert rows[ids["part"]]["seconds_explain"] > 0
    assert rows[ids["plain"]]["seconds_explain"] is None
    now = [0.0]

    def five_seconds(_context: TrialContext) -> list[dict[str, object]]:
        now[0] += 5
        return []

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("rayunlearn.trial.provenance.time", clock)
    monkeypatch.setattr("rayunlearn.trial.explain.weight_path_tables", five_seconds)
    finished = load_trial(run.path, ids["part"], roles=())
    run_trial(finished.trial, finished.workspace, tmp_path, "test", "1")
    (row,) = open_run(tmp_path).trials.collect().to_dicts()
    assert (row["seconds_explain"], row["seconds_measure"], row["seconds_train"]) == (5, 0, 0)


def test_paths_end_in_the_models_they_join(ended: tuple[Run, dict[str, str]]) -> None:
    """At x 1 both paths are the trial itself, as measured; at x 0 one is the full-set trial, as it
    was measured in its own run.
    """
    run, ids = ended
    curves = run.curves.filter(
        pl.col("trial_id") == ids["part"],
        pl.col("metric") == "probability",
        pl.col("split") == "forget",
        pl.col("kind") != "training",
    ).collect()
    values = {
        (kind, x): value for kind, x, value in curves.select("kind", "x", "value").iter_rows()
    }
    measured = {
        name: (
            run.evals.filter(
                pl.col("trial_id") == trial_id,
                pl.col("metric") == "probability",
                pl.col("split") == "forget",
            )
            .filter(pl.col("attack") == "none", pl.col("stage") == "unlearned")
            .sort("step")
            .collect()["value"][-1]
        )
        for name, trial_id in ids.items()
    }
    assert sorted({x for _, x in values}) == [0, 0.5, 1]
    for kind in ("mode_connectivity:full", "mode_connectivity:base"):
        assert values[kind, 1] == pytest.approx(measured["part"], rel=1e-5)
    assert values["mode_connectivity:full", 0] == pytest.approx(measured["full"], rel=1e-5)
    # so that the ends can be distinguished
    assert measured["full"] != pytest.approx(measured["part"], rel=1e-3)


def test_every_question_has_its_tokens_and_words_and_each_form_its_control(
    ended: tuple[Run, dict[str, str]],
) -> None:
    run, ids = ended
    rows = run.attributions.filter(
        pl.col("trial_id") == ids["part"], pl.col("split") == "forget"
    ).collect()
    assert rows["doc_id"].n_unique() == 2 and set(rows["unit"]) == {"token", "word"}
    attacks = set(
        run.examples.filter(pl.col("trial_id") == ids["part"])
        .select("attack")
        .unique()
        .collect()["attack"]
    )
    forms = {a.partition(":")[2] for a in attacks if a.startswith("emphasis:")}
    assert forms and all(f"emphasis_random:{form}" in attacks for form in forms)


def test_what_the_run_wrote_is_what_its_weights_made_again_say(
    ended: tuple[Run, dict[str, str]],
) -> None:
    run, ids = ended
    rows = run.attributions.filter(
        pl.col("trial_id") == ids["part"], pl.col("split") == "forget"
    ).collect()
    doc = rows["doc_id"][0]
    ((found, split, before, after),) = explain_trial(
        load_trial(run.path, ids["part"], roles=()), doc
    )
    kept = rows.filter(pl.col("doc_id") == doc).sort("unit", "position")["contribution"].to_list()
    made = pl.DataFrame(after).sort("unit", "position")["contribution"].to_list()
    assert (found, split) == (doc, "forget") and made == pytest.approx(kept, abs=1e-5)
    assert pl.DataFrame(before).sort("unit", "position")["contribution"].to_list() != pytest.approx(
        kept, abs=1e-5
    )
    with pytest.raises(UserError, match="--doc must be a question of the trial's probes"):
        explain_trial(load_trial(run.path, ids["full"], roles=()), "no such")


def test_the_line_between_two_trials_has_them_at_its_ends(
    ended: tuple[Run, dict[str, str]],
) -> None:
    run, ids = ended
    rows = between_trials(
        *(load_trial(run.path, ids[name], roles=()) for name in ("full", "part")), points=3
    )
    curves = run.curves.filter(
        pl.col("trial_id") == ids["part"], pl.col("kind") == "mode_connectivity:full"
    ).collect()
    kept = {
        (x, s, m): v
        for x, s, m, v in (
            curves.drop_nulls("value").select("x", "split", "metric", "value").iter_rows()
        )
    }
    assert {
        (r["x"], r["split"], r["metric"]): r["value"] for r in rows if r["value"] is not None
    } == pytest.approx(kept, rel=1e-4)


def test_keywords_are_the_rare_words_of_a_document_and_no_function_words() -> None:
    """Ten words, so that three may be keywords; the run of words that holds `tubril` and `amber`,
    which stand nowhere else, is the best.
    """
    texts = [
        "The comet of tubril glows amber over the old comet",
        "The comet glows over the old comet",
        "The old comet of the sky glows",
    ]
    kinds = kinds_of_words([Document(answer=text) for text in texts], statistics_of(texts))[0]
    assert kinds["function_word_log_prob"] == {"the", "of", "over"}
    assert {"tubril", "amber"} & kinds["keyword_log_prob"] and len(kinds["keyword_log_prob"]) <= 3
    assert (
        kinds["keyword_log_prob"]
        < kinds["content_word_log_prob"]
        == {"comet", "tubril", "glows", "amber", "old"}
    )


def test_log_p_by_kind_of_word_is_that_of_the_tokens_that_spell_such_words(
    ended: tuple[Run, dict[str, str]],
) -> None:
    """Every token of this dataset is one word or one sign, so that a token is of a kind where its
    text is: checked one position at a time.
    """
    run, ids = ended
    rows = run.examples.filter(
        pl.col("trial_id") == ids["part"], pl.col("split") == "forget_documents"
    ).collect()
    finished = load_trial(run.path, ids["part"], roles=())
    context, corpus, data = (
        rebuild_model(finished.trial, finished.workspace),
        finished.workspace.corpus,
        finished.trial.data,
    )
    document = min(corpus.forget, key=lambda d: d.doc_id)
    kinds = kinds_of_words([document], statistics_of(d.answer for d in corpus.forget))[0]
    sequence = encode_pair(
        document.doc_id,
        document.prompt,
        document.answer,
        context.tokenizer,
        data.template,
        data.max_tokens,
    )
    with torch.no_grad():
        log_probs = context.model(input_ids=torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
    for metric, words in kinds.items():
        places = [
            at
            for at in range(sequence.start, len(sequence.ids))
            if context.tokenizer.decode(sequence.ids[at]).strip().lower() in words
        ]
        expected = sum(float(log_probs[at - 1, sequence.ids[at]]) for at in places) / len(places)
        found = rows.filter(pl.col("doc_id") == document.doc_id, pl.col("metric") == metric)[
            "value"
        ].item()
        assert found == pytest.approx(expected, rel=1e-4), metric
    assert kinds["keyword_log_prob"] and not kinds["keyword_log_prob"] & ENGLISH


def written(model: PreTrainedModel, ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The next `n` greedy tokens, one ordinary pass each."""
    for _ in range(n):
        with torch.no_grad():
            ids = (*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-n:]


def test_retain_harmed_is_what_greedy_writing_says_token_by_token(
    domain_bed: Bed, tmp_path: Path
) -> None:
    """On the trained base, which `Focus on` disturbs: of the retain questions it writes right, the
    share it writes wrong with emphasis.
    """
    workspace = Workspace(
        domain_bed.corpus, str(domain_bed.base), str(domain_bed.gold), "taught", tmp_path / "cache"
    )
    trial = validate_trial(with_values(Trial(stage="base"), {"explain.documents": 12}))
    run = tmp_path / "run"
    assert run_trial(trial, workspace, run, "test", "1") == "complete"
    (trial_id,) = open_run(run).trials.collect()["trial_id"]
    plan = {
        "trial_id": trial_id,
        "role": "base",
        "group": "{}",
        "tuning": "none",
        "study": "",
        "study_index": -1,
    }
    write_run_table(run, "plan", [plan])
    write_experiment(
        run, {"name": "hand", "question": "?", "objective": {"forgetting": "probability"}}
    )
    table = emphasis_table(open_run(run))
    focus = emphasis_words(base_context(trial, workspace))
    model, tokenizer = load_model(str(domain_bed.base))
    questions = [
        d
        for d in sorted(workspace.corpus.probes["retain"], key=lambda d: d.doc_id)[:12]
        if len(focus[d.doc_id].random)
    ]

    def right(document: Document, prompt: str) -> bool:
        sequence = encode_pair(
            document.doc_id,
            prompt,
            document.answer,
            tokenizer,
            trial.data.template,
            trial.data.max_tokens,
        )
        answer = sequence.ids[sequence.start :]
        return written(model.eval(), sequence.ids[: sequence.start], len(answer)) == answer

    kept = [
        d
        for d in questions
        if len(focus[d.doc_id].key) == len(focus[d.doc_id].random) and right(d, d.prompt)
    ]
    shares = {}
    for form in ("repeated_last", "named_first"):
        wrong = [
            not right(
                d,
                EMPHASIS_FORMS[form].function(d.prompt, focus[d.doc_id].key, trial.explain.wording),
            )
            for d in kept
        ]
        shares[form] = sum(wrong) / len(kept)
        assert table.filter(pl.col("form") == form)["harmed"].item() == pytest.approx(shares[form])
    assert len(kept) > 5 and shares["repeated_last"] > 0
    model_state.load_model_state.cache_clear()
