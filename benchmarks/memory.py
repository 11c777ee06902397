"""Where the memory of an evaluation goes: peak of the process, step by step, beside the plain way.

    python -m benchmarks.memory

`plain`: torch, transformers' Llama and its tokenizer, the model, one pass over each text with the
library's own loss. `ours`: `rayunlearn evaluate` with cheap metrics on the same tiny model and
texts. Each is a process of its own that says its high-water mark (VmHWM) after each step, so that
the difference of two lines is what a step adds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.provenance import provenance
from benchmarks.trials import model_folder

ROOT = Path(__file__).parents[1]
# of the process of the peer that is used most, measured once on such a model (MB, as ru_maxrss)
PEER_MB = 883.0
SAY = """
import json, sys
def say(step):
    with open("/proc/self/status") as status:
        peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    print(json.dumps([step, int(peak) / 1024]), flush=True)
say("python")
"""
PLAIN = """
import torch
torch.set_num_threads(1)
say("torch")
from transformers import AutoModelForCausalLM, AutoTokenizer
say("transformers")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
say("model")
with torch.no_grad():
    for text in json.load(open(sys.argv[2])):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        model(input_ids=ids, labels=ids).loss.item()
say("measured")
"""
OURS = """
from pathlib import Path
from rayunlearn.interop.evaluate import EvaluationRequest, evaluate, write_evaluation
say("rayunlearn")
import torch
torch.set_num_threads(1)
say("torch")
from rayunlearn.models.load import load_model
model = load_model(sys.argv[1], dtype=torch.float32)
say("model")
del model
done = evaluate(EvaluationRequest(model=sys.argv[1], benchmark="domain"), Path(sys.argv[3]))
say("measured")
write_evaluation(Path(sys.argv[3]) / "evaluation", done)
say("written")
"""


def peaks(code: str, *arguments: str) -> list[tuple[str, float]]:
    """(step, peak MB) of a process that runs the code."""
    done = subprocess.run(
        [sys.executable, "-c", SAY + code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [(step, peak) for step, peak in map(json.loads, done.stdout.splitlines())]


def memory_rows() -> list[dict[str, Any]]:
    """One row per way and step."""
    from rayunlearn.config import Data
    from rayunlearn.data.synthetic import generate_dataset

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_folder(folder / "model")
        probes = generate_dataset(Data()).probes.values()
        texts = [f"{d.prompt} {d.answer}" for split in probes for d in split]
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        arguments = (str(folder / "model"), str(folder / "texts.json"), name)
        return [
            {"way": way, "step": step, "peak_mb": peak, "peer_mb": PEER_MB} | provenance()
            for way, code in (("plain", PLAIN), ("ours", OURS))
            for step, peak in peaks(code, *arguments)
        ]


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    rows = memory_rows()
    for row in rows:
        print(f"{row['way']:6} {row['step']:14} {row['peak_mb']:6.0f} MB", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(options.output / "memory.parquet")


if __name__ == "__main__":
    main()
