"""The engine: nothing is computed twice, and what is left out changes no bit. Caches on disk,
frozen prefixes, memory.
"""

import fcntl
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import engine
from rayunlearn import metrics, models
from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data.tokenize import Batch, collate
from rayunlearn.errors import UserError
from rayunlearn.methods.distribution import ce_u, undial
from rayunlearn.methods.forget import FORGET, npo, rmu
from rayunlearn.methods.loss_inputs import control_direction
from rayunlearn.methods.objective import ObjectiveSettings, Side, UnlearningObjective, batch_indices
from rayunlearn.methods.retain import RETAIN, activation, kl, none
from rayunlearn.metrics.evaluate import Measured
from rayunlearn.models.device_memory import (
    DeviceMemoryError,
    StepMemory,
    device_slot,
    retry_alone_on_oom,
    share_of,
    step_memory,
)
from rayunlearn.models.forward import (
    PrefixStart,
    blocks,
    can_pack,
    can_start,
    first_trained_block,
    hidden_states,
    outputs_of,
)
from rayunlearn.models.reference import (
    Reference,
    cached_bytes,
    cached_prefix,
    cached_reference,
    reference_of,
)
from rayunlearn.models.tensor_cache import (
    content_digest,
    pack_tensors,
    sequences_digest,
    tensors_once,
    unpack_tensors,
)
from rayunlearn.storage.artifact_cache import entries, manifest_of
from rayunlearn.storage.code_identity import code_digest
from rayunlearn.storage.run import open_run
from rayunlearn.train.loop import choose_parameters
from rayunlearn.trial import evaluate, model_state
from rayunlearn.trial.references import drops_out
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model

FAMILIES = sorted(CONFIGS)
TOP = {
    "llama": r"layers\.1\.mlp\.down_proj",
    "mistral": r"layers\.1\.mlp\.down_proj",
    "gpt_neox": r"layers\.1\.mlp\.dense_4h_to_h",
    "phi": r"layers\.1\.mlp\.fc2",
}
KEY: dict[str, object] = {"model": "m", "layer": 1}


def counted(calls: list[int], value: float = 1.0) -> dict[str, Tensor]:
    calls.append(1)
    return {"a": torch.full((2, 3), value), "b": torch.arange(4, dtype=torch.bfloat16)}


def only_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


# --- the cache itself


def test_tensors_are_made_once_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    calls: list[int] = []
    first, second = (tensors_once(tmp_path, KEY, lambda: counted(calls)) for _ in range(2))
    assert len(calls) == 1 and content_digest(first) == content_digest(second) == content_digest(
        counted([])
    )


def test_another_key_is_another_file(tmp_path: Path) -> None:
    tensors_once(tmp_path, KEY, lambda: counted([]))
    other = tensors_once(tmp_path, {**KEY, "layer": 2}, lambda: counted([], 7.0))
    assert float(other["a"][0, 0]) == 7.0 and len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    "damage", ["a bit of the data", "the end cut off", "nothing in it", "no safetensors"]
)
def test_a_damaged_file_is_made_again_and_never_used(tmp_path: Path, damage: str) -> None:
    tensors_once(tmp_path, KEY, lambda: counted([]))
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    ways = {
        "a bit of the data": bytes(content),
        "the end cut off": bytes(content[:-5]),
        "nothing in it": b"",
        "no safetensors": b"hello" * 99,
    }
    file.write_bytes(ways[damage])
    calls: list[int] = []
    again = tensors_once(tmp_path, KEY, lambda: counted(calls))
    assert len(calls) == 1 and content_digest(again) == content_digest(counted([]))
    tensors_once(tmp_path, KEY, lambda: counted(calls))
    assert len(calls) == 1


def test_a_whole_file_of_another_key_in_the_place_of_this_one_is_not_used(tmp_path: Path) -> None:
    """As after a collision of names or a copy by hand: content and digest agree with each other,
    the key does not.
    """
    tensors_once(tmp_path / "a", KEY, lambda: counted([]))
    tensors_once(tmp_path / "b", {**KEY, "model": "another"}, lambda: counted([], 7.0))
    mine, other = only_file(tmp_path / "a"), only_file(tmp_path / "b")
    other.replace(mine)
    manifest_of(other).replace(manifest_of(mine))
    calls: list[int] = []
    found = tensors_once(tmp_path / "a", KEY, lambda: counted(calls))
    assert len(calls) == 1 and float(found["a"][0, 0]) == 1.0


def test_writing_to_what_was_read_does_not_change_the_file(tmp_path: Path) -> None:
    tensors_once(tmp_path, KEY, lambda: counted([]))["a"].fill_(9.0)
    assert float(tensors_once(tmp_path, KEY, lambda: counted([]))["a"][0, 0]) == 1.0


def test_reading_maps_the_file_and_does_not_load_it(tmp_path: Path) -> None:
    tensors = tensors_once(tmp_path, KEY, lambda: counted([]))
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("no /proc on this system")
    assert only_file(tmp_path).name in mapped.read_text() and float(tensors["a"].sum()) == 6.0


def test_a_folder_that_cannot_be_written_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="the cache must be writable"):
        tensors_once(tmp_path / "file" / "cache", KEY, lambda: counted([]))


@pytest.fixture(scope="module")
def two_workers() -> Iterator[ProcessPoolExecutor]:
    """Two processes of their own, started once for the tests of this file."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, torch.set_num_threads, (1,)) as pool:
        yield pool


def make_once_beside_another(folder: Path) -> list[float]:
    """Ask the cache for a tensor at the moment at which another process does."""

    def make() -> dict[str, Tensor]:
        with (folder / "log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(1.5)
        return {"a": torch.full((3,), 4.0)}

    (folder / f"ready-{os.getpid()}").touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.01)
    made: list[float] = tensors_once(folder / "cache", {"k": 1}, make)["a"].tolist()
    return made


def test_two_processes_that_want_the_same_at_once_make_it_once(
    two_workers: ProcessPoolExecutor, tmp_path: Path
) -> None:
    both = [two_workers.submit(make_once_beside_another, tmp_path) for _ in range(2)]
    assert [one.result(timeout=120) for one in both] == [[4.0, 4.0, 4.0]] * 2
    assert len((tmp_path / "log").read_text().split()) == 1


def test_sequences_come_back_from_their_packed_form() -> None:
    assert unpack_tensors(pack_tensors(SEQUENCES), [s.doc_id for s in SEQUENCES]) == SEQUENCES
    assert unpack_tensors(pack_tensors([]), []) == []


def test_the_digest_of_sequences_sees_ids_starts_names_and_order() -> None:
    first = SEQUENCES[0]
    changed = [
        replace(first, ids=(*first.ids[:-1], 3)),
        replace(first, start=2),
        replace(first, doc_id="z"),
    ]
    variants = [SEQUENCES, SEQUENCES[::-1], *([c, *SEQUENCES[1:]] for c in changed)]
    assert len({sequences_digest(v) for v in variants}) == len(variants)


# --- what the model said before


@pytest.mark.parametrize("kind", ["token_nll", "log_probs", "hidden", "hidden_norm"])
def test_a_reference_from_disk_equals_one_made_in_memory(tmp_path: Path, kind: str) -> None:
    model = tiny_model()
    plain = reference_of(model, SEQUENCES, [kind], 1, 0.7)
    cached_reference(tmp_path, {"k": 1}, model, SEQUENCES, [kind], 1, 0.7)
    # another model: it must not be asked
    kept = cached_reference(tmp_path, {"k": 1}, tiny_model(seed=9), SEQUENCES, [kind], 1, 0.7)
    chosen = [SEQUENCES[2], SEQUENCES[0]]
    batch = collate(chosen)
    assert torch.equal(getattr(kept, kind)(chosen, batch), getattr(plain, kind)(chosen, batch))


def test_the_size_of_distributions_is_labels_times_vocabulary_times_four() -> None:
    labels = sum(len(s.ids) - s.start for s in SEQUENCES)
    tokens = sum(len(s.ids) for s in SEQUENCES)
    sizes = {
        kind: cached_bytes(tiny_model(), SEQUENCES, kind)
        for kind in ("log_probs", "hidden", "token_nll")
    }
    assert sizes == {
        "log_probs": labels * 37 * 4,
        "hidden": tokens * 16 * 4,
        "token_nll": labels * 4,
    }


def losses_and_gradients(
    model: Any, forget: Side, retain: Side, pattern: str = ".*"
) -> list[Tensor]:
    """Both terms of step 0 and the gradient of every trained parameter. The batch is all of
    SEQUENCES.
    """
    model.zero_grad()
    chosen = choose_parameters(model, pattern)
    terms = UnlearningObjective(
        model,
        forget,
        retain,
        ObjectiveSettings(retain_weight=1.5, layer=1, batch_size=len(SEQUENCES), seed=3),
    )(0)
    terms.total.backward()
    grads = [p.grad.clone() for p in chosen if p.grad is not None]
    assert len(grads) == len(chosen) or pattern == ".*"
    return [t.detach() for t in (terms.forget, terms.retain) if t is not None] + grads


@pytest.mark.parametrize(("forget", "retain"), [(undial, kl), (undial, none), (npo, kl)])
def test_distributions_from_a_frozen_copy_give_the_losses_and_gradients_of_the_cached_ones(
    tmp_path: Path, forget: Any, retain: Any
) -> None:
    model, trained = tiny_model(), tiny_model(seed=5)
    kinds = ("log_probs", "token_nll")
    cached, computed = (
        cached_reference(
            tmp_path, {"k": 1}, model, SEQUENCES, kinds, 1, limits={"log_probs": limit}
        )
        for limit in (10**9, 0)
    )
    assert list(tmp_path.glob("*.safetensors"))
    with torch.no_grad():
        for parameter in model.parameters():
            # training goes on: the copy must not follow
            parameter.zero_()
    results = [
        losses_and_gradients(trained, Side(forget, SEQUENCES, r), Side(retain, SEQUENCES, r))
        for r in (cached, computed)
    ]
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_over_the_limit_nothing_is_written(tmp_path: Path) -> None:
    cached_reference(
        tmp_path, {"k": 1}, tiny_model(), SEQUENCES, ["log_probs"], 1, limits={"log_probs": 1}
    )
    assert not list(tmp_path.glob("*.safetensors"))


# --- only the layers that are needed


def library_states(model: Any, batches: list[Batch]) -> list[Tensor]:
    """Output of block 1 from the library, in padded batches, with all blocks and all logits."""
    caught: list[Tensor] = []
    handle = blocks(model)[1].register_forward_hook(lambda _m, _i, o: caught.append(o))
    for batch in batches:
        model(input_ids=batch.input_ids)
    handle.remove()
    return caught


def packed_states(model: Any, batches: list[Batch]) -> list[Tensor]:
    """The same in one row, with all blocks and the logits of the labels."""
    outputs = outputs_of(model, batches, [None] * len(batches), layer=1)
    return [hidden for _, hidden in outputs if hidden is not None]


def full_way(
    model: Any, reference: Any, pattern: str, states: Callable[[Any, list[Batch]], list[Tensor]]
) -> list[Tensor]:
    """RMU + activation the plain way: every block of both models runs, and logits too."""
    model.zero_grad()
    chosen = choose_parameters(model, pattern)
    batches = [collate([SEQUENCES[at] for at in batch_indices(3, 3, 0, seed)]) for seed in (6, 7)]
    first, second = states(model, batches)
    forget = rmu(first, batches[0].labelled, control_direction(16, 3))
    with torch.no_grad():
        before = states(reference, batches)[1]
    retain = activation(second, before, batches[1].labelled)
    (torch.stack([forget, 1.5 * retain]).sum()).backward()
    return [forget.detach(), retain.detach(), *(p.grad.clone() for p in chosen)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rmu_from_cached_prefix_and_reference_equals_the_full_computation_bit_for_bit(
    tmp_path: Path, family: str
) -> None:
    """Second model, all layers, all logits against: block 1 alone, on cached inputs, beside cached
    activations.

    The trained model has moved from the base in block 1, as after some steps. The library's own
    padded batches round otherwise: they are within 1e-6.
    """
    base, trained = tiny_model(family), tiny_model(family)
    # the first use tries a model as a whole
    assert can_pack(trained)
    choose_parameters(trained, TOP[family])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.full_like(parameter, 0.01) if parameter.requires_grad else 0.0)
    key: dict[str, object] = {"k": family}
    reference = cached_reference(tmp_path, key, base, SEQUENCES, ["hidden"], 1)
    prefix = cached_prefix(tmp_path, key, base, SEQUENCES, first_trained_block(trained))
    ran: list[int] = []
    for at, block in enumerate(blocks(trained)):
        block.mlp.register_forward_hook(lambda _m, _i, _o, at=at: ran.append(at))
    sides = (
        Side(rmu, SEQUENCES, Reference({}), prefix=prefix),
        Side(activation, SEQUENCES, reference, prefix=prefix),
    )
    ours = losses_and_gradients(trained, *sides, TOP[family])
    assert ran == [1]
    packed, padded = (
        full_way(trained, base, TOP[family], states) for states in (packed_states, library_states)
    )
    for mine, same, library in zip(ours, packed, padded, strict=True):
        assert torch.equal(mine, same)
        torch.testing.assert_close(mine, library, rtol=1e-5, atol=1e-6)
    assert float(ours[1]) > 0 and float(ours[2].abs().max()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihood_losses_from_a_cached_prefix_are_the_same_bits_too(
    tmp_path: Path, family: str
) -> None:
    model = tiny_model(family)
    reference = reference_of(model, SEQUENCES, ["token_nll"], 1)
    prefix = cached_prefix(tmp_path, {"k": family}, model, SEQUENCES, 1)
    nothing = Side(none, [], Reference({}))
    plain, ours = (
        losses_and_gradients(model, Side(npo, SEQUENCES, reference, prefix=p), nothing, TOP[family])
        for p in (None, prefix)
    )
    assert all(torch.equal(left, right) for left, right in zip(plain, ours, strict=True))


def test_in_batches_of_another_shape_the_cached_prefix_differs_by_rounding_alone(
    tmp_path: Path,
) -> None:
    model = tiny_model()
    prefix = cached_prefix(tmp_path, {"k": 1}, model, SEQUENCES, 2)
    batch = collate(SEQUENCES[:1])
    with torch.no_grad():
        ours, plain = (
            hidden_states(model, batch, 2, prefix.start(SEQUENCES[:1], batch)),
            hidden_states(model, batch, 2),
        )
    # values near 0.1: a few units in the last place
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-7)


def test_blocks_are_as_they_were_after_a_pass_that_began_higher_up() -> None:
    model, batch = tiny_model(), collate(SEQUENCES)
    with torch.no_grad():
        before = hidden_states(model, batch, 2)
        hidden_states(model, batch, 2, PrefixStart(2, torch.zeros(*batch.present.shape, 16)))
        assert torch.equal(hidden_states(model, batch, 2), before)
    assert not any(
        "forward" in block.__dict__ or block._forward_pre_hooks for block in blocks(model)
    )


def test_a_pass_can_start_in_all_four_families_and_not_where_blocks_change_the_rules() -> None:
    batch = collate(SEQUENCES)
    assert all(can_start(tiny_model(family), batch, 2) for family in FAMILIES)
    model, seen = tiny_model(), [torch.zeros(())]

    def look(_module: Any, _inputs: Any, output: Tensor) -> None:
        seen[0] = output.mean()

    blocks(model)[0].register_forward_hook(look)
    # a block that needs what a lower one did
    blocks(model)[2].register_forward_hook(lambda _m, _i, output: output + seen[0])
    assert not can_start(model, batch, 2)


def test_the_lowest_trained_block_is_found_by_name_and_everything_outside() -> None:
    model = tiny_model()
    found = {}
    for pattern in (
        r"layers\.1\.",
        r"layers\.2\.mlp",
        ".*",
        "embed_tokens|layers.2",
        r"layers\.[12]\.self_attn",
    ):
        choose_parameters(model, pattern)
        found[pattern] = first_trained_block(model)
    assert list(found.values()) == [1, 2, 0, 0, 1]


class Waiting(TorchDispatchMode):
    """Notes operations whose result the processor must wait for on a GPU: a number read, a size
    that depends on values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = any(
            isinstance(i, Tensor) and i.dtype == torch.bool
            for a in args
            if isinstance(a, list | tuple)
            for i in a
        )
        if (
            func in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)
            or by_mask
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("forget", "retain"), [(npo, kl), (undial, none), (ce_u, none), (rmu, activation)]
)
def test_nothing_of_ours_in_a_step_waits_for_the_device(forget: Any, retain: Any) -> None:
    """Labels are searched for once per batch, on the processor before it is sent. Once per pass
    transformers (5.x) itself looks whether the batch is a packed one,
    `find_packed_sequence_indices`; no option switches that off."""
    model = tiny_model()
    reference = reference_of(model, SEQUENCES, ["token_nll", "log_probs", "hidden"], 1)
    terms = UnlearningObjective(
        model,
        Side(forget, SEQUENCES, reference),
        Side(retain, SEQUENCES, reference),
        ObjectiveSettings(retain_weight=1.0, layer=1, batch_size=2, seed=0),
    )
    with Waiting() as waiting:
        terms(0).total.backward()
    n_batches, counts = 1 + (retain is not none), Counter(waiting.found)
    assert counts.pop("aten.nonzero.default") == n_batches
    assert counts.pop("aten._local_scalar_dense.default", 0) <= n_batches and not counts


def test_what_would_wait_is_found() -> None:
    with Waiting() as waiting:
        values = torch.arange(4.0)
        values[values > 1].sum().item()
    assert waiting.found == ["aten.index.Tensor", "aten._local_scalar_dense.default"]


# --- the benchmark


@pytest.mark.parametrize("case", engine.CASES, ids=lambda case: case.name)
def test_both_sides_of_the_benchmark_compute_the_same_loss(
    case: engine.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whole models and logits everywhere, against caches and what is needed alone: a ratio of
    unlike things says nothing.
    """
    shape = {
        "vocab_size": 53,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 9,
        "num_attention_heads": 2,
    }
    monkeypatch.setitem(engine.SHAPES, "nano", shape)
    row = engine.step_rows("nano", [case], repeats=1, batch_size=3, device=torch.device("cpu"))[0]
    # terms of 4 that cancel to 0.011: a rounding of a term is 400 times as much of their sum
    most = 1e-4 if case.name == "ga + nll" else 1e-5
    assert row["loss_difference"] < most and min(row["plain_cpu"], row["ours_cpu"]) > 0


def test_every_forget_and_retain_loss_is_benchmarked() -> None:
    assert {case.forget for case in engine.CASES} == set(FORGET)
    assert {case.retain for case in engine.CASES} == set(RETAIN)


# --- whole trials


THREE_MATRICES: dict[str, Value] = {
    "method.forget": "rmu",
    "method.retain": "activation",
    "method.layer": 2,
    "train.parameters": r"layers\.[12]\.mlp\.down_proj",
    "train.length": 6,
    "train.batch_size": 4,
    "stop.check_every": 2,
}


def losses(workspace: Workspace, run: Path, **changes: Value) -> list[float]:
    """The losses of a trial in a worker that starts from nothing but the disk."""
    model_state.load_model_state.cache_clear()
    trial = validate_trial(
        with_values(
            Trial(),
            THREE_MATRICES | {name.replace("__", "."): value for name, value in changes.items()},
        )
    )
    assert run_trial(trial, workspace, run, "test", "1") == "complete"
    return open_run(run).steps.sort("step").collect()["loss"].to_list()


def test_a_second_worker_reads_every_cache_of_the_first_and_damaged_ones_change_no_number(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = losses(workspace, tmp_path / "a")
    files = entries(workspace.cache)
    assert sorted(file.parent.name for file in files) == [
        "encodings",
        "encodings",
        "evaluations",
        "evaluations",
        "keywords",
        "prefix",
        "prefix",
        "reference",
    ]
    times = [file.stat().st_mtime_ns for file in files]
    assert losses(workspace, tmp_path / "b") == first
    assert [file.stat().st_mtime_ns for file in files] == times
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert losses(workspace, tmp_path / "c") == first
    assert all(file.stat().st_mtime_ns > before for file, before in zip(files, times, strict=True))


def test_trials_side_by_side_train_from_one_prefix_as_each_does_alone(
    two_workers: ProcessPoolExecutor, workspace: Workspace, tmp_path: Path
) -> None:
    """Two processes at once, as on a GPU that they share, whose cache is empty at first: one file
    for each side, the losses of a process alone.
    """
    shared, rates = replace(workspace, cache=tmp_path / "cache"), (1e-3, 3e-3)
    begun = [
        two_workers.submit(losses, shared, tmp_path / str(rate), train__learning_rate=rate)
        for rate in rates
    ]
    beside = [one.result(timeout=540) for one in begun]
    assert len(list(shared.cache.glob("prefix/*.safetensors"))) == 2
    assert beside == [
        losses(workspace, tmp_path / "alone" / str(rate), train__learning_rate=rate)
        for rate in rates
    ]
    assert beside[0] != beside[1]


@pytest.mark.parametrize("forget", ["rmu", "npo"])
def test_a_trial_with_a_cached_prefix_trains_as_one_without(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: str
) -> None:
    with_prefix = losses(workspace, tmp_path / "a", method__forget=forget)
    monkeypatch.setattr("rayunlearn.trial.references.ACTIVATION_BYTES", 0)
    assert losses(workspace, tmp_path / "b", method__forget=forget) == pytest.approx(
        with_prefix, rel=1e-5
    )


def test_lora_starts_from_the_cached_prefix_too(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Value] = {"train__adapter": "lora", "train__parameters": r"layers\.2\.mlp"}
    before = len(list(workspace.cache.glob("prefix/*.safetensors")))
    with_prefix = losses(workspace, tmp_path / "a", **values)
    assert len(list(workspace.cache.glob("prefix/*.safetensors"))) == before + 2
    monkeypatch.setattr("rayunlearn.trial.references.ACTIVATION_BYTES", 0)
    assert losses(workspace, tmp_path / "b", **values) == pytest.approx(with_prefix, rel=1e-5)


def test_a_model_with_dropout_runs_all_its_blocks() -> None:
    model = tiny_model()
    assert not drops_out(model)
    model.config.attention_dropout = 0.1
    assert drops_out(model)


def test_half_a_gradient_of_a_failed_trial_is_gone_before_the_next(workspace: Workspace) -> None:
    state = model_state.reset_weights(workspace.base)
    state.model.get_input_embeddings().weight.grad = torch.ones_like(
        state.model.get_input_embeddings().weight
    )
    assert all(p.grad is None for p in model_state.reset_weights(workspace.base).model.parameters())


def base_rows(workspace: Workspace, run: Path, **changes: Value) -> list[dict[str, Any]]:
    """Examples of a base trial in a worker that starts from nothing but the disk."""
    model_state.load_model_state.cache_clear()
    trial = validate_trial(
        with_values(
            Trial(stage="base"), {name.replace("__", "."): value for name, value in changes.items()}
        )
    )
    assert run_trial(trial, workspace, run, "test", "1") == "complete"
    return (
        open_run(run)
        .examples.sort("doc_id", "split", "metric")
        .collect()
        .drop("trial_id")
        .to_dicts()
    )


def test_the_base_model_is_measured_once_for_all_runs(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = base_rows(workspace, tmp_path / "a", measure__metrics="probability")
    asked: list[int] = []
    monkeypatch.setattr(
        "rayunlearn.trial.evaluate.measure",
        lambda *_a, **_k: asked.append(1) or Measured([], []),
    )
    assert (
        base_rows(workspace, tmp_path / "b", measure__metrics="probability") == first and not asked
    )
    monkeypatch.setattr(
        "rayunlearn.trial.evaluate.code_digest", lambda *_: "the code that measures is another"
    )
    # nothing was measured this time, and a trial without a row fails
    with pytest.raises(AssertionError):
        base_rows(workspace, tmp_path / "c", measure__metrics="probability")
    assert asked


def test_code_is_identified_by_what_it_says() -> None:
    assert (
        code_digest(metrics)
        == code_digest(metrics)
        != code_digest(models)
        != code_digest(models, evaluate)
    )


def test_docstrings_comments_and_layout_are_no_part_of_the_code(tmp_path: Path) -> None:
    def digest_of(text: str) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "module.py"
        file.parent.mkdir()
        file.write_text(text)
        module = ModuleType("module")
        module.__file__ = str(file)
        return code_digest(module)

    plain = 'def f(a):\n    """Doubles."""\n    return 2 * a\n'
    same = '"""A module."""\n\n# why\ndef f(a):\n    """Twice."""\n    return 2 * (\n    a\n    )\n'
    other = 'def f(a):\n    """Doubles."""\n    return 3 * a\n'
    assert digest_of(plain) == digest_of(same) != digest_of(other)


def test_alternates_are_written_by_the_model_once_for_all_workers(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Value] = {
        "method__forget": "altpo",
        "method__retain": "none",
        "select__ratio": 0.02,
        "alternate__count": 2,
        "train__length": 2,
    }
    first = losses(workspace, tmp_path / "a", **values)
    assert len(entries(workspace.cache / "companions")) == 1

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the alternates were there")

    monkeypatch.setattr("rayunlearn.methods.paired_responses.sample", never)
    assert losses(workspace, tmp_path / "b", **values) == first
    # refusals are not the model's
    assert losses(workspace, tmp_path / "c", **values | {"method__forget": "idk"})


# --- memory


def test_the_memory_of_a_step_worked_by_hand() -> None:
    """W (4, 3): 48 bytes, its gradient 48, two moments 96. x (5, 3), 60 bytes, is kept for W; y = x
    W^T (5, 4), 80 bytes, for y^2.
    """
    model, x = torch.nn.Linear(3, 4, bias=False), torch.ones(5, 3)
    memory = step_memory(model, list(model.parameters()), lambda: model(x).square().sum())
    assert (
        memory == StepMemory(weights=48, gradients=48, moments=96, activations=140)
        and memory.total == 332
    )


def test_a_step_from_a_prefix_keeps_fewer_activations(tmp_path: Path) -> None:
    model = tiny_model()
    trained = choose_parameters(model, TOP["llama"])
    prefix = cached_prefix(tmp_path, {"k": 1}, model, SEQUENCES, 1)
    batch = collate(SEQUENCES)
    start = prefix.start(SEQUENCES, batch)
    short = step_memory(
        model, trained, lambda: hidden_states(model, batch, 1, start).square().sum()
    )
    everything = step_memory(
        model,
        choose_parameters(model, ".*"),
        lambda: model(input_ids=batch.input_ids).logits.square().sum(),
    )
    assert 0 < short.activations < everything.activations / 3 and short.moments == 2 * 16 * 24 * 4


def test_shares_of_a_device_leave_a_margin_and_tile_it() -> None:
    gib = 2**30
    # 12.5 + 0.59 of 80 GiB is 0.164, rounded up to a twentieth
    assert share_of(10 * gib, 80 * gib) == pytest.approx(0.2)
    assert share_of(75 * gib, 80 * gib) == 1.0
    with pytest.raises(UserError, match="a trial must fit on the device's 80.0 GiB"):
        share_of(80 * gib, 80 * gib)


def failing(times: int, calls: list[bool], place: Path) -> str:
    """Runs out of memory `times` times; notes whether somebody else could be let in meanwhile."""
    with open(place) as room:
        try:
            fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
            calls.append(False)
        except BlockingIOError:
            calls.append(True)
    if len(calls) <= times:
        raise torch.OutOfMemoryError(f"tried to allocate {len(calls)} GiB")
    return "done"


def test_a_trial_that_runs_out_of_memory_beside_others_is_run_once_more_alone(
    tmp_path: Path,
) -> None:
    calls: list[bool] = []
    assert (
        retry_alone_on_oom(lambda: failing(1, calls, tmp_path / "gpu"), tmp_path / "gpu") == "done"
    )
    assert calls == [False, True]


def test_a_trial_that_does_not_fit_alone_either_says_so_and_what_to_do(tmp_path: Path) -> None:
    calls: list[bool] = []
    with pytest.raises(
        DeviceMemoryError,
        match=(
            r"again alone; lower train.batch_size .* First: tried to allocate 1 GiB Alone: tried to"
            r" allocate 2 GiB"
        ),
    ):
        retry_alone_on_oom(lambda: failing(2, calls, tmp_path / "gpu"), tmp_path / "gpu")


def test_who_wants_to_be_alone_waits_for_the_others_and_lets_nobody_in_before(
    tmp_path: Path,
) -> None:
    """A trial runs; one that wants to be alone comes; a third comes after it. Flock knows open
    files, so threads do.
    """
    place, order, started = tmp_path / "gpu", list[str](), threading.Event()

    def lone() -> None:
        started.set()
        with device_slot(place, alone=True):
            order.append("alone")

    def third() -> None:
        with device_slot(place, alone=False):
            order.append("third")

    waiting = [threading.Thread(target=task) for task in (lone, third)]
    with device_slot(place, alone=False):
        waiting[0].start()
        started.wait()
        time.sleep(0.2)
        waiting[1].start()
        time.sleep(0.2)
        order.append("first ends")
    for thread in waiting:
        thread.join(10)
    assert order == ["first ends", "alone", "third"]


def test_running_out_of_memory_twice_is_a_row_that_says_so(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never_fits(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rayunlearn.trial.run._attempt", never_fits)
    assert (
        run_trial(
            validate_trial(with_values(Trial(), THREE_MATRICES)), workspace, tmp_path, "test", "1"
        )
        == "failed"
    )
    row = open_run(tmp_path).trials.collect().to_dicts()[0]
    assert row["error_type"] == "DeviceMemoryError" and "train.batch_size" in row["error"]
