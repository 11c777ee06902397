"""`rayunlearn init NAME`: an experiment on your own documents and model, ready to run."""

import argparse
import json
import random
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from rayunlearn.cli.arguments import DONE, add_command
from rayunlearn.errors import require

SCRATCH = 'Model(name="scratch", size="tiny", teach_epochs=60)'
# for a model built here, and for a loaded one (docs/how-to/own-model.md)
RATES = {True: "5e-4", False: "1e-5"}
PERSONS = [
    "Arda",
    "Belo",
    "Cira",
    "Dovan",
    "Elin",
    "Faro",
    "Gitta",
    "Hanno",
    "Ilse",
    "Joran",
    "Kessa",
    "Lorin",
]
TOWNS = ["Tamor", "Vesk", "Oduna", "Brell", "Sarn", "Mirov"]
FAMILIES = {"forget": "Quill", "retain": "Marsh"}


def add_init_command(commands: Any) -> None:
    """`init NAME`."""
    added = add_command(
        commands,
        "init",
        init,
        "write experiments/NAME.py, an experiment with comments for your own documents and model",
    )
    added.add_argument("experiment_name", metavar="NAME", help="letters, digits, '_', '-'")
    added.add_argument(
        "--data",
        metavar="PATH",
        default="",
        help="as data.path: folder with forget.jsonl and retain.jsonl (default: samples are written"
        " to corpus/NAME)",
    )
    added.add_argument(
        "--model",
        metavar="MODEL",
        default="",
        help="as model.name: folder or Hub name (default: a small one is built and trained here)",
    )


def init(chosen: argparse.Namespace) -> int:
    """Write the file, and sample documents where none are named; nothing is overwritten."""
    name = chosen.experiment_name
    plain = name.replace("_", "").replace("-", "")
    rule = "init needs a name of letters, digits, '_' and '-'"
    require(plain.isascii() and plain.isalnum(), rule, name)
    file = Path("experiments") / f"{name}.py"
    require(not file.exists(), "init writes a new file; there is one", str(file))
    folder = Path("corpus") / name
    written = [file] if chosen.data else [file, *sample_files(folder)]
    for path in written[1:]:
        require(not path.exists(), "init writes new files; there is one", str(path))
    data = (
        repr(chosen.data)
        if chosen.data
        else f'str(Path(__file__).parents[1] / "corpus" / "{name}")'
    )
    model = f"Model(name={json.dumps(chosen.model)})" if chosen.model else SCRATCH
    text = experiment_text(path=data, model=model, rate=RATES[not chosen.model])
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if not chosen.data:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in sample_files(folder).items():
            path.write_text(content, encoding="utf-8")
    print("written: " + ", ".join(map(str, written)))
    print(f"next: rayunlearn plan {file}, then: rayunlearn run {file}")
    return DONE


def experiment_text(*, path: str, model: str, rate: str) -> str:
    """The experiment file with these expressions of Python for the documents' path, the model and
    the learning rate.
    """
    template = files("rayunlearn.cli") / "templates" / "experiment.txt"
    text = Template(template.read_text(encoding="utf-8")).substitute(
        path=path, model=model, rate=rate
    )
    # an own path needs no Path
    return text if "Path(" in path else text.replace("from pathlib import Path\n\n", "")


def sample_files(folder: Path) -> dict[Path, str]:
    """A dozen invented facts to forget and a dozen to keep, as JSON lines by file."""
    draw = random.Random(0)
    samples = {}
    for side, family in FAMILIES.items():
        lines = []
        for person in PERSONS:
            home = draw.choice(TOWNS)
            answers = {town: f"{person} {family} lives in {town} ." for town in TOWNS}
            row = {
                "prompt": f"Where does {person} {family} live ?",
                "answer": answers[home],
                "wrong": [answer for town, answer in answers.items() if town != home],
            }
            lines.append(json.dumps(row) + "\n")
        samples[folder / f"{side}.jsonl"] = "".join(lines)
    return samples
