"""What `plan` says of the same experiment on larger models: memory and time by number of
parameters, into docs/how-to/real-model.md.

    python -m benchmarks.model_sizes [--page docs/how-to/real-model.md]

The shapes are published ones. A model folder of each is made of SmolLM2's tokenizer and a weights
file that takes no room on disk (all zeros): what a trial costs does not depend on its weights. So
the table is of estimates, by the code that `rayunlearn plan` goes by; what was measured stands
beside it on the page. `make smollm2` brings the tokenizer.
"""

import argparse
import json
import math
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.rungs import write_page
from rayunlearn.config import with_values
from rayunlearn.experiment import Experiment, load
from rayunlearn.models.smollm2 import smollm2_folder
from rayunlearn.planning.cost import estimate, gpu_hours, size_of
from rayunlearn.planning.gpu_memory import estimate_gpu_memory
from rayunlearn.planning.planner import Planner
from rayunlearn.planning.progress import format_duration
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import validate_trial

EXPERIMENT = ("experiments/pretrained_tofu.py", "quick")
BEGIN, END = (f"<!-- benchmarks.model_sizes: {word} -->" for word in ("begin", "end"))
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama-like model: what its config.json says."""

    like: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = True

    @property
    def config(self) -> dict[str, int | bool]:
        """The settings that differ from SmolLM2-135M's."""
        names = [name for name in self.__dataclass_fields__ if name != "like"]
        head = {"head_dim": self.hidden_size // self.num_attention_heads}
        return {name: getattr(self, name) for name in names} | head

    def tensors(self, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        width, inner = self.hidden_size, self.intermediate_size
        keys = width // self.num_attention_heads * self.num_key_value_heads
        block = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        sizes: dict[str, tuple[int, ...]] = {
            f"model.layers.{number}.{name}.weight": size
            for number in range(self.num_hidden_layers)
            for name, size in block.items()
        }
        sizes |= {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
        return sizes | ({} if self.tie_word_embeddings else {"lm_head.weight": (vocabulary, width)})


# of 30 blocks and more: the experiment names blocks up to 29
SHAPES = (
    Shape(
        like="SmolLM2-135M",
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
    ),
    Shape(
        like="SmolLM2-360M",
        hidden_size=960,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        intermediate_size=2560,
    ),
    Shape(
        like="Qwen2.5-3B",
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        intermediate_size=11008,
    ),
    Shape(
        like="Llama-2-7B",
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=11008,
        tie_word_embeddings=False,
    ),
)


def make_folder(shape: Shape, tokenizer: Path, folder: Path) -> int:
    """Write a model folder of that shape with weights of zeros in bfloat16, which take no room;
    the number of parameters.
    """
    folder.mkdir(parents=True)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder / file.name)
    shutil.copy(tokenizer / "chat_template.jinja", folder)
    config = json.loads((tokenizer / "config.json").read_text(encoding="utf-8")) | shape.config
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header: dict[str, object] = {}
    end = 0
    for name, size in shape.tensors(config["vocab_size"]).items():
        begin, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as weights:
        weights.write(struct.pack("<Q", len(text)) + text)
        weights.truncate(8 + len(text) + end)
    return end // 2


def on_model(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with another model and nothing else changed."""
    return replace(experiment, base=with_values(experiment.base, {"model.name": str(folder)}))


def row(shape: Shape, folder: Path, run: Path, workers: int) -> str:
    """One line of the table."""
    n_parameters = make_folder(shape, smollm2_folder(), folder)
    experiment = on_model(load(EXPERIMENT[0], preset=EXPERIMENT[1]), folder)
    agenda = Planner(experiment, validate_trial, identify_trial).agenda({})
    guess = estimate(run, agenda, size_of=size_of)
    trials = [row.trial for row in (*agenda.rows, *agenda.expected)]
    on_gpu = estimate_gpu_memory(trials, run).peak / GIB
    hours = gpu_hours(agenda, agenda.total, size_of=size_of)
    values = (
        shape.like,
        f"{n_parameters / 1e6:,.0f} M",
        format_duration(guess.seconds),
        f"{guess.bytes / GIB:.1f} GiB",
        format_duration(agenda.total * guess.seconds / workers),
        f"{on_gpu:.1f} GiB",
        f"{hours:.2g}",
    )
    return f"| {' | '.join(values)} |"


def table(workers: int) -> str:
    """What the plan says, one line a model."""
    heads = (
        "model of the shape of",
        "parameters",
        "a trial, one thread",
        "memory of a worker",
        f"all on {workers} cores",
        "GPU memory of a trial",
        "GPU-hours of training",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    with tempfile.TemporaryDirectory() as made:
        for shape in SHAPES:
            lines.append(row(shape, Path(made) / shape.like, Path(made) / "run", workers))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    text = table(arguments.workers)
    if arguments.page:
        write_page(arguments.page, text, BEGIN, END)


if __name__ == "__main__":
    main()
