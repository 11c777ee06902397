"""The engine: nothing is computed twice, and what is left out changes no bit. Caches on disk, frozen prefixes, memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rayunlearn.data.encode import collate
from rayunlearn.errors import UserError
from rayunlearn.methods.distribution import undial
from rayunlearn.methods.forget import npo, rmu
from rayunlearn.methods.objective import Objective, Side, stream
from rayunlearn.methods.retain import activation, kl, none
from rayunlearn.methods.view import control_direction
from rayunlearn.models.cache import content_digest, packed, sequences_digest, tensors_once, unpacked
from rayunlearn.models.forward import Start, blocks, can_start, first_trained_block, hidden_states
from rayunlearn.models.reference import Reference, kept_bytes, kept_prefix, kept_reference, reference_of
from rayunlearn.train.loop import choose_parameters
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
    assert len(calls) == 1 and content_digest(first) == content_digest(second) == content_digest(counted([]))


def test_another_key_is_another_file(tmp_path: Path) -> None:
    tensors_once(tmp_path, KEY, lambda: counted([]))
    other = tensors_once(tmp_path, {**KEY, "layer": 2}, lambda: counted([], 7.0))
    assert float(other["a"][0, 0]) == 7.0 and len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", ["a bit of the data", "the end cut off", "nothing in it", "no safetensors"])
def test_a_damaged_file_is_made_again_and_never_used(tmp_path: Path, damage: str) -> None:
    tensors_once(tmp_path, KEY, lambda: counted([]))
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    ways = {"a bit of the data": bytes(content), "the end cut off": bytes(content[:-5]), "nothing in it": b"", "no safetensors": b"hello" * 99}
    file.write_bytes(ways[damage])
    calls: list[int] = []
    again = tensors_once(tmp_path, KEY, lambda: counted(calls))
    assert len(calls) == 1 and content_digest(again) == content_digest(counted([]))
    tensors_once(tmp_path, KEY, lambda: counted(calls))
    assert len(calls) == 1


def test_a_whole_file_of_another_key_in_the_place_of_this_one_is_not_used(tmp_path: Path) -> None:
    """As after a collision of names or a copy by hand: content and digest agree with each other, the key does not."""
    tensors_once(tmp_path, KEY, lambda: counted([]))
    file = only_file(tmp_path)
    with safe_open(file, framework="pt") as opened:
        notes = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in ("a", "b")}
    save_file(tensors, file, notes | {"key": json.dumps({"format": 1, "model": "another"})})
    calls: list[int] = []
    tensors_once(tmp_path, KEY, lambda: counted(calls))
    assert len(calls) == 1


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


MAKER = """
import os, sys, time, torch
from pathlib import Path
from rayunlearn.models.cache import tensors_once
folder = Path(sys.argv[1])
def make():
    with open(folder / "log", "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(1.5)
    return {"a": torch.full((3,), 4.0)}
(folder / f"ready-{os.getpid()}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
print(tensors_once(folder / "cache", {"k": 1}, make)["a"].tolist())
"""


def test_two_processes_that_want_the_same_at_once_make_it_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in both]
    assert said == ["[4.0, 4.0, 4.0]"] * 2
    assert len((tmp_path / "log").read_text().split()) == 1


def test_sequences_come_back_from_their_packed_form() -> None:
    assert unpacked(packed(SEQUENCES), [s.doc_id for s in SEQUENCES]) == SEQUENCES
    assert unpacked(packed([]), []) == []


def test_the_digest_of_sequences_sees_ids_starts_names_and_order() -> None:
    first = SEQUENCES[0]
    changed = [replace(first, ids=(*first.ids[:-1], 3)), replace(first, start=2), replace(first, doc_id="z")]
    variants = [SEQUENCES, SEQUENCES[::-1], *([c, *SEQUENCES[1:]] for c in changed)]
    assert len({sequences_digest(v) for v in variants}) == len(variants)


# --- what the model said before


@pytest.mark.parametrize("kind", ["token_nll", "log_probs", "hidden", "hidden_norm"])
def test_a_reference_from_disk_equals_one_made_in_memory(tmp_path: Path, kind: str) -> None:
    model = tiny_model()
    plain = reference_of(model, SEQUENCES, 0, [kind], 1, 0.7)
    kept_reference(tmp_path, {"k": 1}, model, SEQUENCES, 0, [kind], 1, 0.7)
    kept = kept_reference(tmp_path, {"k": 1}, tiny_model(seed=9), SEQUENCES, 0, [kind], 1, 0.7)  # another model: it must not be asked
    chosen = [SEQUENCES[2], SEQUENCES[0]]
    batch = collate(chosen, 0)
    assert torch.equal(getattr(kept, kind)(chosen, batch), getattr(plain, kind)(chosen, batch))


def test_the_size_of_distributions_is_labels_times_vocabulary_times_four() -> None:
    labels = sum(len(s.ids) - s.start for s in SEQUENCES)
    tokens = sum(len(s.ids) for s in SEQUENCES)
    sizes = {kind: kept_bytes(tiny_model(), SEQUENCES, kind) for kind in ("log_probs", "hidden", "token_nll")}
    assert sizes == {"log_probs": labels * 37 * 4, "hidden": tokens * 16 * 4, "token_nll": labels * 4}


def losses_and_gradients(model: Any, forget: Side, retain: Side, pattern: str = ".*") -> list[Tensor]:
    """Both terms of step 0 and the gradient of every trained parameter. The batch is all of SEQUENCES."""
    model.zero_grad()
    chosen = choose_parameters(model, pattern)
    terms = Objective(model, forget, retain, retain_weight=1.5, layer=1, batch_size=len(SEQUENCES), pad_id=0, seed=3)(0)
    terms.total.backward()
    grads = [p.grad.clone() for p in chosen if p.grad is not None]
    assert len(grads) == len(chosen) or pattern == ".*"
    return [t.detach() for t in (terms.forget, terms.retain) if t is not None] + grads


@pytest.mark.parametrize(("forget", "retain"), [(undial, kl), (undial, none), (npo, kl)])
def test_distributions_from_a_frozen_copy_give_the_losses_and_gradients_of_the_cached_ones(tmp_path: Path, forget: Any, retain: Any) -> None:
    model, trained = tiny_model(), tiny_model(seed=5)
    kinds = ("log_probs", "token_nll")
    cached, computed = (kept_reference(tmp_path, {"k": 1}, model, SEQUENCES, 0, kinds, 1, limits={"log_probs": limit}) for limit in (10**9, 0))
    assert list(tmp_path.glob("*.safetensors"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # training goes on: the copy must not follow
    results = [losses_and_gradients(trained, Side(forget, SEQUENCES, r), Side(retain, SEQUENCES, r)) for r in (cached, computed)]
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_over_the_limit_nothing_is_written(tmp_path: Path) -> None:
    kept_reference(tmp_path, {"k": 1}, tiny_model(), SEQUENCES, 0, ["log_probs"], 1, limits={"log_probs": 1})
    assert not list(tmp_path.glob("*.safetensors"))


# --- only the layers that are needed


def full_way(model: Any, reference: Any, pattern: str) -> list[Tensor]:
    """RMU + activation the plain way: every block of both models runs, all logits too; hidden states from the library."""
    model.zero_grad()
    chosen = choose_parameters(model, pattern)

    def layer_1(which: Any, batch: Any) -> Tensor:
        caught: list[Tensor] = []
        handle = blocks(which)[1].register_forward_hook(lambda _m, _i, o: caught.append(o))
        which(input_ids=batch.input_ids)
        handle.remove()
        return caught[0]

    batches = [collate([SEQUENCES[at] for at in stream(3, 3, 0, seed)], 0) for seed in (6, 7)]
    forget = rmu(layer_1(model, batches[0]), batches[0].labelled, control_direction(16, 3))
    with torch.no_grad():
        before = layer_1(reference, batches[1])
    retain = activation(layer_1(model, batches[1]), before, batches[1].labelled)
    (torch.stack([forget, 1.5 * retain]).sum()).backward()
    return [forget.detach(), retain.detach(), *(p.grad.clone() for p in chosen)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rmu_from_cached_prefix_and_reference_equals_the_full_computation_bit_for_bit(tmp_path: Path, family: str) -> None:
    """Second model, all layers, all logits against: block 1 alone, on cached inputs, beside cached activations.

    The trained model has moved from the base in block 1, as after some steps. The batch holds all documents, as the
    caches' own batch does: in batches of other shape the library's matrix products themselves differ in the last bit.
    """
    base, trained = tiny_model(family), tiny_model(family)
    choose_parameters(trained, TOP[family])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.full_like(parameter, 0.01) if parameter.requires_grad else 0.0)
    key: dict[str, object] = {"k": family}
    reference = kept_reference(tmp_path, key, base, SEQUENCES, 0, ["hidden"], 1)
    prefix = kept_prefix(tmp_path, key, base, SEQUENCES, 0, first_trained_block(trained))
    ran: list[int] = []
    for at, block in enumerate(blocks(trained)):
        block.mlp.register_forward_hook(lambda _m, _i, _o, at=at: ran.append(at))
    sides = Side(rmu, SEQUENCES, Reference({}), prefix=prefix), Side(activation, SEQUENCES, reference, prefix=prefix)
    ours = losses_and_gradients(trained, *sides, TOP[family])
    assert ran == [1, 1]
    for left, right in zip(ours, full_way(trained, base, TOP[family]), strict=True):
        assert torch.equal(left, right)
    assert float(ours[1]) > 0 and float(ours[2].abs().max()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihood_losses_from_a_cached_prefix_are_the_same_bits_too(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    reference = reference_of(model, SEQUENCES, 0, ["token_nll"], 1)
    prefix = kept_prefix(tmp_path, {"k": family}, model, SEQUENCES, 0, 1)
    nothing = Side(none, [], Reference({}))
    plain, ours = (losses_and_gradients(model, Side(npo, SEQUENCES, reference, prefix=p), nothing, TOP[family]) for p in (None, prefix))
    assert all(torch.equal(left, right) for left, right in zip(plain, ours, strict=True))


def test_in_batches_of_another_shape_the_cached_prefix_differs_by_rounding_alone(tmp_path: Path) -> None:
    model = tiny_model()
    prefix = kept_prefix(tmp_path, {"k": 1}, model, SEQUENCES, 0, 2)
    batch = collate(SEQUENCES[:1], 0)
    with torch.no_grad():
        ours, plain = hidden_states(model, batch, 2, prefix.start(SEQUENCES[:1], batch)), hidden_states(model, batch, 2)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-7)  # values near 0.1: a few units in the last place


def test_blocks_are_as_they_were_after_a_pass_that_began_higher_up() -> None:
    model, batch = tiny_model(), collate(SEQUENCES, 0)
    with torch.no_grad():
        before = hidden_states(model, batch, 2)
        hidden_states(model, batch, 2, Start(2, torch.zeros(*batch.present.shape, 16)))
        assert torch.equal(hidden_states(model, batch, 2), before)
    assert not any("forward" in block.__dict__ or block._forward_pre_hooks for block in blocks(model))


def test_a_pass_can_start_in_all_four_families_and_not_where_blocks_change_the_rules() -> None:
    batch = collate(SEQUENCES, 0)
    assert all(can_start(tiny_model(family), batch, 2) for family in FAMILIES)
    model, seen = tiny_model(), [torch.zeros(())]

    def look(_module: Any, _inputs: Any, output: Tensor) -> None:
        seen[0] = output.mean()

    blocks(model)[0].register_forward_hook(look)
    blocks(model)[2].register_forward_hook(lambda _m, _i, output: output + seen[0])  # a block that needs what a lower one did
    assert not can_start(model, batch, 2)


def test_the_lowest_trained_block_is_found_by_name_and_everything_outside_the_blocks_counts_as_the_lowest() -> None:
    model = tiny_model()
    found = {}
    for pattern in (r"layers\.1\.", r"layers\.2\.mlp", ".*", "embed_tokens|layers.2", r"layers\.[12]\.self_attn"):
        choose_parameters(model, pattern)
        found[pattern] = first_trained_block(model)
    assert list(found.values()) == [1, 2, 0, 0, 1]
