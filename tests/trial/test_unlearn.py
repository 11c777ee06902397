"""Every method inside a trial on the trained tiny dataset, and what goes around it: wrappers,
adapters, pieces, processes.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rayunlearn.config import NO_RUNGS, Trial, Value, with_values
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.objective import ObjectiveSettings, UnlearningObjective, batch_indices
from rayunlearn.registry import arguments_of
from rayunlearn.storage.run import open_run
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial import model_state
from rayunlearn.trial import unlearn as unlearn_module
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import ModelState, reset_weights
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.unlearn import _checkpoints, objective_sides, unlearn
from rayunlearn.trial.workspace import Workspace, validate_trial

KEPT = list(range(8))
SHORT: dict[str, Value] = {
    "train.length": 6,
    "train.learning_rate": 1e-3,
    "train.schedule": "constant",
    "train.warmup_fraction": 0.0,
    "method.layer": 1,
    "stop.utility_floor": 0.0,
}
RETAIN_OF = {
    "rmu": "activation",
    "adaptive_rmu": "activation",
    "llmu": "kl",
    "llmu_two_term": "kl",
    "task_vector": "none",
}


@pytest.fixture(scope="module")
def workspace(domain_workspace: Workspace) -> Workspace:
    return domain_workspace


def made(values: Mapping[str, Value]) -> Trial:
    """A short trial with the values; the retain loss is the method's own where none is given."""
    retain = {"method.retain": RETAIN_OF.get(str(values.get("method.forget", "npo")), "nll")}
    return validate_trial(with_values(Trial(), {**SHORT, **retain, **values}))


def trained(trial: Trial, workspace: Workspace, folder: Path) -> tuple[ModelState, TrainLog]:
    state = reset_weights(workspace.base)
    return state, unlearn(TrialContext(trial, workspace, state), KEPT, folder / "adapter")


def forget_loss(
    trial: Trial, workspace: Workspace, state: ModelState, start: dict[str, Tensor]
) -> tuple[float, float]:
    """The forget term on the same batch, with the weights before and after."""
    after = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.model.load_state_dict(start)
    forget, retain = objective_sides(TrialContext(trial, workspace, state), KEPT)
    terms = UnlearningObjective(
        state.model,
        forget,
        retain,
        ObjectiveSettings(retain_weight=0.0, layer=trial.method.layer, batch_size=8, seed=0),
    )
    found = []
    for weights in (start, after):
        state.model.load_state_dict(weights)
        with torch.no_grad():
            term = terms.forget_term(0)
            assert term is not None
            found.append(float(term))
    return found[0], found[1]


@pytest.mark.parametrize("name", [name for name in FORGET if name != "none"])
def test_every_method_lowers_its_own_forget_loss_on_the_bed(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    """A task vector ends on the other side: what it is trained on is higher than at the start."""
    trial = made({"method.forget": name})
    state, log = trained(trial, workspace, tmp_path)
    assert (
        log.outcome == "complete"
        and len(log.rows) == 6
        and log.parameters_trained == sum(p.numel() for p in state.model.parameters())
    )
    before, after = forget_loss(trial, workspace, state, state.pristine)
    assert (after > before) if name == "task_vector" else (after < before)


@pytest.mark.parametrize("text", ["original", "random_words"])
def test_batches_do_not_depend_on_how_the_documents_rank(text: str, workspace: Workspace) -> None:
    """The same documents in three orders, two a step: the same losses to the last bit. Other
    documents train otherwise.
    """
    trial = made({"train.length": 3, "train.batch_size": 2, "select.text": text})

    def losses(coreset: list[int]) -> list[float]:
        state = reset_weights(workspace.base)
        log = unlearn(TrialContext(trial, workspace, state), coreset, Path(), lambda _step: None)
        return [row.loss for row in log.rows]

    in_order = losses([1, 4, 6, 7, 9])
    assert losses([9, 7, 6, 4, 1]) == losses([6, 1, 9, 4, 7]) == in_order
    assert losses([1, 4, 6, 7, 10]) != in_order


def test_the_batches_of_a_seed_are_those_of_the_documents_in_the_corpus_order(
    workspace: Workspace,
) -> None:
    """The loss of the first step is that of the documents that `batch_indices` draws, by position
    in the corpus, however the coreset was ranked.
    """
    trial = made({"train.length": 1, "train.batch_size": 2, "method.forget": "ga"})
    state = reset_weights(workspace.base)
    context = TrialContext(trial, workspace, state)
    first, second = ([1, 4, 6, 9][at] for at in batch_indices(4, 2, 0, 2 * trial.train.seed))
    drawn, retain = objective_sides(context, [first, second])
    settings = ObjectiveSettings(retain_weight=0.0, layer=1, batch_size=2, seed=0)
    term = UnlearningObjective(state.model, drawn, retain, settings).forget_term(0)
    assert term is not None
    log = unlearn(context, [9, 1, 6, 4], Path(), lambda _step: None)
    assert log.rows[0].forget_loss == pytest.approx(float(term.detach()), rel=1e-5)


def test_dpo_prefers_what_it_is_told_to_prefer(workspace: Workspace) -> None:
    """Refusals are ours; alternates are neither refusals nor the truth; documents of the dataset
    bring no wrong answers.
    """
    state = reset_weights(workspace.base)
    texts = {}
    for kind in ("refusal", "alternate"):
        forget, _ = objective_sides(
            TrialContext(
                made({"method.forget": "dpo", "method.preferred": kind}), workspace, state
            ),
            KEPT,
        )
        texts[kind] = {
            state.tokenizer.decode(c.ids[c.start :])
            for choice in forget.companions["preferred"].choices.values()
            for c in choice
        }
    assert texts["refusal"] and not texts["refusal"] & texts["alternate"]
    truths = {state.tokenizer.decode(s.ids[round(len(s.ids) / 4) :]) for s in forget.sequences}
    assert not truths & texts["alternate"]


def test_a_temperature_reaches_the_reference_so_that_nothing_is_forgotten_at_the_start(
    workspace: Workspace,
) -> None:
    """At the reference npo is 2 ln 2 / beta whatever the temperature; a reference at another one
    would not give that.
    """
    trial = made({"method.forget": "npo", "token.temperature": 2.5})
    before, _ = forget_loss(
        trial, workspace, reset_weights(workspace.base), reset_weights(workspace.base).pristine
    )
    assert before == pytest.approx(2 * 0.6931472 / 0.1, rel=1e-5)


def test_pieces_of_a_batch_train_like_the_whole_batch(workspace: Workspace, tmp_path: Path) -> None:
    """npo is a mean over sequences, so the mean over two halves of the batch is the same loss and
    gradient but for rounding.
    """
    values: dict[str, Value] = {"method.forget": "npo", "method.retain": "none"}
    whole, pieces = (
        trained(made(values | {"train.accumulation": n}), workspace, tmp_path)[1] for n in (1, 2)
    )
    assert [r.loss for r in pieces.rows] == pytest.approx([r.loss for r in whole.rows], rel=1e-3)
    assert [r.tokens for r in pieces.rows] == [
        r.tokens for r in whole.rows
    ] and pieces.presentations == whole.presentations == 48


def test_a_checkpoint_that_other_code_wrote_is_as_none(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = made({"train.checkpoint_every": 1})
    context = TrialContext(trial, workspace, reset_weights(workspace.base))
    written = _checkpoints(context, KEPT, tmp_path / "c.safetensors", NO_RUNGS)
    assert written is not None
    written.save({"w": torch.ones(1)}, {"step": 1})
    assert written.read() is not None
    monkeypatch.setattr(unlearn_module, "code_digest", lambda *_modules: "other code")
    other = _checkpoints(context, KEPT, tmp_path / "c.safetensors", NO_RUNGS)
    assert other is not None and other.read() is None


def test_words_restrict_a_loss_inside_a_trial(workspace: Workspace) -> None:
    word = workspace.corpus.forget[0].answer.split()[-1].strip(".")
    state = reset_weights(workspace.base)
    forget, _ = objective_sides(TrialContext(made({"token.words": word}), workspace, state), KEPT)
    spoken = {
        state.tokenizer.decode([s.ids[at]]).strip()
        for s in forget.sequences
        for at in forget.rule.positions[s.doc_id]
    }
    assert spoken == {word}


@pytest.mark.parametrize("wrapper", ["sam", "average", "ball", "sam,ball,average"])
def test_a_wrapper_changes_where_a_trial_ends(
    wrapper: str, workspace: Workspace, tmp_path: Path
) -> None:
    plain, _ = trained(made({"method.forget": "ga"}), workspace, tmp_path)
    ends = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    changed = {
        "method.wrappers": wrapper,
        "average.start": 0.5,
        "average.every": 1,
        "ball.radius": 1e-3,
    }
    wrapped, log = trained(
        made({"method.forget": "ga"} | {k: v for k, v in changed.items()}), workspace, tmp_path
    )
    assert log.outcome == "complete"
    assert any(
        not torch.equal(tensor, ends[name]) for name, tensor in wrapped.model.state_dict().items()
    )
    if "ball" in wrapper:
        for name, parameter in wrapped.model.named_parameters():
            moved = (parameter.detach() - wrapped.pristine[name]).abs().sum()
            assert float(moved) <= 1.001e-3 * float(wrapped.pristine[name].abs().sum()), name


def test_a_lora_trial_leaves_its_adapter_alone_beside_the_run_and_the_worker_goes_on_unspoilt(
    workspace: Workspace, tmp_path: Path
) -> None:
    values = {
        "method.forget": "npo",
        "train.adapter": "lora",
        "lora.rank": 4,
        "train.parameters": "down_proj",
    }
    assert run_trial(made(values), workspace, tmp_path, "t", "1") == "complete"
    (folder,) = (tmp_path / "adapters").iterdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    row = open_run(tmp_path).trials.collect().row(0, named=True)
    assert (
        folder.name == row["trial_id"]
        and row["parameters_trained"] == sum(t.numel() for t in tensors.values()) > 0
    )
    assert len(tensors) == 2 * reset_weights(workspace.base).model.config.num_hidden_layers
    again = made({"method.forget": "npo"})
    first, second = (run_trial(again, workspace, tmp_path / str(n), "t", "1") for n in (1, 2))
    losses = [
        open_run(tmp_path / str(n)).steps.sort("step").select("loss").collect() for n in (1, 2)
    ]
    assert first == second == "complete" and losses[0].equals(losses[1])


def test_a_model_stored_as_bfloat16_is_trained_with_float32_weights(
    workspace: Workspace, tmp_path: Path
) -> None:
    """At rate 1e-6 every update is far smaller than half a step of bfloat16 and would be lost."""
    state = reset_weights(workspace.base)
    state.model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    state.tokenizer.save_pretrained(tmp_path / "half")
    model_state.load_model_state.cache_clear()
    half = Workspace(workspace.corpus, str(tmp_path / "half"), "", "half", tmp_path / "cache")
    trial = made({"method.forget": "ga", "train.learning_rate": 1e-6})
    found = reset_weights(half.base)
    unlearn(TrialContext(trial, half, found), KEPT, tmp_path / "adapter")
    model_state.load_model_state.cache_clear()
    moved = [
        n
        for n, p in found.model.named_parameters()
        if p.dtype == torch.float32 and not torch.equal(p.detach(), found.pristine[n])
    ]
    assert len(moved) == len(list(found.model.named_parameters()))


def test_a_trial_reads_the_options_of_everything_it_chooses(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert (
        run_trial(made({"method.forget": "pdu", "dual.limit": 0.02}), workspace, tmp_path, "t", "1")
        == "complete"
    )
    row = open_run(tmp_path).trials.select(pl.col("^dual\\..*$")).collect().row(0, named=True)
    assert row == {"dual.limit": 0.02, "dual.rate": 1.0, "dual.warmup_steps": 0}
    assert arguments_of(
        made({"method.forget": "task_vector", "negate.scale": 3.0}), FORGET["task_vector"].ending
    ) == {"scale": 3.0}
