"""How much of a GPU a trial takes: measured without weights, corrected by what trials took, handed
to Ray, refused in time.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedModel,
)

from rayunlearn.cluster.session import ConcurrencyLimit, concurrency_limit, trial_resources
from rayunlearn.config import Model, Trial, Value, flatten, with_values
from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.errors import UserError
from rayunlearn.models.device_memory import StepMemory, step_memory
from rayunlearn.models.forward import token_nll
from rayunlearn.models.load import save_model
from rayunlearn.models.packing import padded_passes
from rayunlearn.models.scratch import MOST_WORDS, SHAPES, build_model, build_tokenizer
from rayunlearn.planning.gpu_memory import (
    GpuMemory,
    _likelihood_loss,
    _meta_model,
    _states_loss,
    _step,
    estimate_gpu_memory,
    gpu_share,
    peak_bytes,
)
from rayunlearn.planning.plan_run import Options
from rayunlearn.storage.run import write_trial
from rayunlearn.train.optimizers import OPTIMIZERS
from rayunlearn.trial.workspace import validate_trial

GIB = 2**30
SCRATCH = Trial(model=Model(size="tiny"))


def made(**changes: Value) -> Trial:
    return validate_trial(
        with_values(
            SCRATCH,
            {"method.layer": 1}
            | {name.replace("__", "."): value for name, value in changes.items()},
        )
    )


def memory_of_a_padded_step(model: PreTrainedModel, batch: Batch) -> StepMemory:
    """Of a pass whose last block runs everywhere, as the outline's does."""
    with padded_passes():
        return step_memory(model, list(model.parameters()), lambda: token_nll(model, batch).sum())


def test_a_step_without_numbers_keeps_what_a_step_with_numbers_keeps() -> None:
    """The same four sequences of 30 tokens through the model itself, on the processor: within a
    quarter (the mask, another attention kernel).
    """
    model = build_model("tiny", MOST_WORDS, 0)
    batch = collate([Encoded(str(at), tuple(range(10, 40)), 20) for at in range(4)])
    real = memory_of_a_padded_step(model, batch)
    outline = _meta_model(SCRATCH)
    without = step_memory(
        outline, list(outline.parameters()), lambda: _likelihood_loss(outline, 4, 30, labels=10)
    )
    assert (without.weights, without.gradients, without.moments) == (
        real.weights,
        real.gradients,
        real.moments,
    )
    assert without.activations == pytest.approx(real.activations, rel=0.25)


@pytest.mark.parametrize(
    ("forget", "retain", "states", "logits"),
    [("npo", "kl", 0, 2), ("rmu", "activation", 2, 0), ("rmu", "nll", 1, 1), ("dpo", "nll", 0, 3)],
)
def test_a_step_keeps_what_its_passes_keep_one_beside_the_other(
    forget: str, retain: str, states: int, logits: int
) -> None:
    """One pass of each kind is measured for a trial; here all of them run into one sum. DPO looks
    at a document and at the answer to prefer.
    """
    trial = made(method__forget=forget, method__retain=retain)
    model = _meta_model(trial)
    trained = list(model.parameters())

    def loss() -> Tensor:
        passes = [_states_loss(model, 4, 30, layer=1) for _ in range(states)]
        passes += [_likelihood_loss(model, 4, 30, labels=10) for _ in range(logits)]
        return torch.stack(passes).sum()

    assert _step(trial, model, trained, (4, 30, 10)) == step_memory(model, trained, loss)


SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "hidden_size": 64}
FAMILIES = {
    # its grouped kernel takes bfloat16 alone where tensors hold no numbers
    "mixtral": MixtralConfig(
        **SHAPE, intermediate_size=96, num_key_value_heads=2, num_local_experts=4
    ),
    # it counts positions by its mask
    "opt": OPTConfig(**SHAPE, ffn_dim=128, word_embed_proj_dim=64),
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_step_without_numbers_is_that_of_a_family_with_a_pass_of_its_own(
    family: str, tmp_path: Path
) -> None:
    """Within a third, as another attention kernel and mask are taken."""
    tokenizer = build_tokenizer([" ".join(f"w{n}" for n in range(40))])
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).float()
    save_model(model, tokenizer, tmp_path / family)
    batch = collate([Encoded(str(at), tuple(range(10, 40)), 20) for at in range(4)])
    real = memory_of_a_padded_step(model, batch)
    trial = Trial(model=Model(name=str(tmp_path / family), teach=False))
    outline = _meta_model(trial)
    without = step_memory(
        outline, list(outline.parameters()), lambda: _likelihood_loss(outline, 4, 30, labels=10)
    )
    assert (without.weights, without.gradients) == (real.weights, real.gradients)
    assert without.activations == pytest.approx(real.activations, rel=1 / 3)


def test_a_family_that_cannot_be_measured_without_weights_is_refused_in_words(
    tmp_path: Path,
) -> None:
    """Mamba's pass wants a mask of another form."""
    tokenizer = build_tokenizer([" ".join(f"w{n}" for n in range(40))])
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=64, state_size=4)
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "mamba")
    model = Model(name=str(tmp_path / "mamba"), teach=False)
    rule = (
        r"mamba \(MambaForCausalLM\) needs of a GPU cannot be estimated without its weights, so"
        r" --gpus-per-trial must be said"
    )
    with pytest.raises(UserError, match=rule):
        estimate_gpu_memory([replace(made(), model=model)], tmp_path)


def test_rows_of_a_run_that_lack_an_option_of_an_adapter_correct_by_its_default(
    tmp_path: Path,
) -> None:
    """As a run of an earlier version left them: planning goes on."""
    trial = made(train__adapter="lora", lora__rank=4)
    settings = {name: value for name, value in flatten(trial).items() if name != "lora.alpha"}
    row = {"status": "complete", "hardware": "a GPU", "peak_memory_bytes": 2 * peak_bytes(trial)}
    write_trial(tmp_path, "trial0", {"trials": [row]}, settings)
    room = estimate_gpu_memory([trial], tmp_path)
    assert room.peak == pytest.approx(2 * peak_bytes(trial), rel=0.01)


def test_what_a_trial_needs_follows_what_it_trains_and_how_much_at_once() -> None:
    """Batches so large that the step counts and not the measuring afterwards, which is the same for
    all.
    """
    size = 128
    whole = made(train__batch_size=size)
    one_matrix = made(train__batch_size=size, train__parameters=r"layers\.2\.mlp\.down_proj")
    assert (
        peak_bytes(one_matrix)
        < peak_bytes(made(train__batch_size=size, train__layers="2"))
        < peak_bytes(whole)
    )
    assert peak_bytes(whole) > 2 * peak_bytes(made(train__batch_size=size, train__accumulation=8))
    assert peak_bytes(
        made(train__batch_size=size, train__adapter="lora", train__layers="2")
    ) < peak_bytes(whole)
    shape = SHAPES["tiny"]
    # weights, gradient and two moments of the embeddings alone
    assert peak_bytes(whole) > 4 * 4 * (MOST_WORDS + 5) * shape.width


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_what_an_optimizer_remembers_is_what_a_trial_needs_beside_another_optimizer(
    name: str,
) -> None:
    """Of every tensor of the model, so large a batch that the step counts and not the measuring."""
    sizes = [p.numel() for p in build_model("tiny", MOST_WORDS, 0).parameters()]
    remembered = {
        optimizer: sum(OPTIMIZERS[optimizer].state_bytes(n, 4) for n in sizes)
        for optimizer in ("adamw", name)
    }
    large = {"train__batch_size": 128}
    needs = [peak_bytes(made(**large, train__optimizer=o)) for o in ("adamw", name)]
    assert needs[0] - needs[1] == remembered["adamw"] - remembered[name] > 0


def test_weights_in_fewer_bits_and_inputs_of_blocks_alone_need_less() -> None:
    large = {"train__batch_size": 128}
    plain = peak_bytes(made(**large))
    copied = peak_bytes(made(**large, train__weights="bfloat16"))
    alone = peak_bytes(made(**large, train__weights="bfloat16", train__master_weights=False))
    checkpointed = peak_bytes(made(**large, train__checkpoint_activations=True))
    assert alone < copied < plain and checkpointed < plain
    adapted = {**large, "train__adapter": "lora", "train__checkpoint_activations": True}
    needs = [peak_bytes(made(**adapted, train__weights=w)) for w in ("float32", "bfloat16", "nf4")]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 3


def test_the_hungriest_trial_of_a_plan_counts_and_the_others_are_not_measured_again(
    tmp_path: Path,
) -> None:
    trials = [
        made(train__learning_rate=rate, train__batch_size=size)
        for rate in (1e-4, 1e-3)
        for size in (4, 128)
    ]
    peak_bytes.cache_clear()
    room = estimate_gpu_memory([*trials, replace(SCRATCH, stage="base")], tmp_path)
    assert (
        room.peak >= max(peak_bytes.__wrapped__(trial) for trial in trials[:2])
        and "batch 128 in 1" in room.trial
    )
    # two batch sizes and base
    assert peak_bytes.cache_info().currsize == 3


def finished_on(run: Path, trial: Trial, number: int, *, hardware: str, peak: float) -> None:
    row = {"status": "complete", "hardware": hardware, "peak_memory_bytes": int(peak)}
    write_trial(run, f"trial{number}", {"trials": [row]}, flatten(trial))


def test_peaks_of_finished_trials_correct_the_estimate_and_those_of_processors_do_not(
    tmp_path: Path,
) -> None:
    """A trial took three times its estimate on a GPU, another one its estimate: the plan counts
    three times.
    """
    small, large = made(train__batch_size=4), made(train__batch_size=32)
    alone = estimate_gpu_memory([large], tmp_path)
    finished_on(tmp_path, small, 0, hardware="x86_64 CPU, 2 cores", peak=50 * peak_bytes(small))
    assert estimate_gpu_memory([large], tmp_path) == alone
    finished_on(tmp_path, small, 1, hardware="a GPU", peak=peak_bytes(small))
    finished_on(
        tmp_path,
        replace(small, train=replace(small.train, seed=1)),
        2,
        hardware="a GPU",
        peak=3 * peak_bytes(small),
    )
    corrected = estimate_gpu_memory([large], tmp_path)
    assert (
        corrected.peak == pytest.approx(3 * alone.peak, rel=0.01)
        and "x 3.00 as 2 finished trials took" in corrected.source
    )


def test_the_share_is_said_and_a_trial_too_large_for_a_gpu_is_refused_by_name() -> None:
    room = GpuMemory(
        peak=10 * GIB, trial="npo + nll, model m, batch 8 in 1", source="one step without weights"
    )
    share, words = gpu_share(room, 80 * GIB)
    assert share == 0.2 and words.startswith(
        "each trial takes 0.2 of a GPU of 80.0 GiB: 10.00 GiB for npo + nll"
    )
    with pytest.raises(
        UserError,
        match=(
            r"a trial \(npo \+ nll, model m, batch 8 in 1\) must fit on the device's 8.0 GiB"
            r" \(lower train.batch_size"
        ),
    ):
        gpu_share(room, 8 * GIB)


@pytest.mark.parametrize(
    ("gpu", "slots"),
    [(0.05, 16), (0.25, 8), (0.3, 6), (0.6, 2), (1.0, 2), (2.0, 1), (0.0, 16)],
    ids=lambda value: str(value),
)
def test_shares_of_two_gpus_are_counted_per_gpu(gpu: float, slots: int) -> None:
    there = {"CPU": 16.0, "GPU": 2.0}
    assert concurrency_limit(there, {"cpu": 1.0, "gpu": gpu} if gpu else {"cpu": 1.0}) == slots


def test_a_cluster_that_starts_from_nothing_is_not_taken_for_one_without_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head of no CPU, as in cluster.yaml: what a trial takes has to be said, and a machine then
    starts for it.
    """
    there: dict[str, float] = {"memory": 8e9}
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": there}])
    with pytest.raises(
        UserError,
        match=(
            r"--gpus-per-trial must be said \(0: none\) as long as no machine of the cluster has"
            r" a CPU"
        ),
    ):
        trial_resources(gpus_per_trial=None)
    assert trial_resources(gpus_per_trial=1.0) == {"cpu": 1.0, "gpu": 1.0}
    assert trial_resources(gpus_per_trial=0.0) == {"cpu": 1.0}
    there |= {"CPU": 8.0}
    assert trial_resources(gpus_per_trial=None) == {"cpu": 1.0}
    with pytest.raises(UserError, match="--gpus-per-trial needs a cluster with GPUs"):
        trial_resources(gpus_per_trial=1.0)
    there |= {"GPU": 1.0}
    assert trial_resources(gpus_per_trial=None, share=lambda: 0.25) == {"cpu": 1.0, "gpu": 0.25}


def test_trials_kept_to_machines_of_a_kind_see_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "Alive": True,
        "NodeID": "a",
        "Resources": {
            "CPU": 8.0,
            "GPU": 4.0,
            "accelerator_type:T4": 1.0,
            "memory": 1.0,
            "node:10.0.0.1": 1.0,
        },
    }
    large = {
        "Alive": True,
        "NodeID": "b",
        "Resources": {"CPU": 2.0, "GPU": 1.0, "accelerator_type:A100": 1.0},
    }
    gone = {
        "Alive": False,
        "NodeID": "c",
        "Resources": {"CPU": 64.0, "GPU": 8.0, "accelerator_type:A100": 1.0},
    }
    monkeypatch.setattr("ray.nodes", lambda: [small, large, gone])
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 10.0})
    took = trial_resources(gpus_per_trial=0.5, on="accelerator_type:A100")
    assert took == {"cpu": 1.0, "gpu": 0.5, "accelerator_type:A100": 0.001}
    assert (
        ConcurrencyLimit(took, on="accelerator_type:A100")() == 2
        and ConcurrencyLimit({"cpu": 1.0, "gpu": 0.5})() == 10
    )
    with pytest.raises(
        UserError,
        match=(
            r"--on must name a resource of a machine that is there \(accelerator_type:A100,"
            r" accelerator_type:T4\), got 'H100'"
        ),
    ):
        trial_resources(gpus_per_trial=None, on="H100")


def test_more_than_one_gpu_for_a_trial_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=(
            r"--gpus-per-trial must be in \[0, 1\], as a process trains on one GPU;"
            r" --processes-per-trial gives a trial several, got 2\.0"
        ),
    ):
        Options(gpus_per_trial=2.0)
