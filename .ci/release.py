"""Builds wheel and sdist and tries them in bare environments: `make release`.

For each interpreter of Python 3.11, 3.12 and 3.13 that is at hand: an environment of its own, the
wheel with the versions of constraints.txt, then the command, the tables that the package carries,
and a small experiment to its report, outside the repository. With the first interpreter the sdist
too, and every extra by itself: what it brings is imported.

    python .ci/release.py [--python PATH ...] [--extras NAME ...] [--folder build/release]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
# what each extra is for, as the module that it brings; those left out are for developers alone, or
# fix other versions (gptqmodel)
BROUGHT_BY = {
    "keywords": ("yake",),
    "cmaes": ("cmaes",),
    "s3": ("s3fs",),
    "trackers": ("tensorboard", "wandb", "mlflow"),
    "attribution": ("captum",),
    "quantisation": ("bitsandbytes",),
    "harness": ("lm_eval",),
    "gguf": ("gguf",),
    "pdf": ("fpdf", "matplotlib"),
    "docs": ("mkdocs",),
    "bench": ("rake_nltk",),
}
NOT_TRIED = ("dev", "gptqmodel")
# what the package carries beside its code
SMOKE = (
    "import rayunlearn, rayunlearn.data.known as known;"
    "assert len(known.relation_names()) >= 6, 'tables of facts are missing'"
)
# trials of two steps on the smallest model, one worker, to the report
SMALL_RUN = (
    "run",
    "experiments/mine.py",
    "--workers",
    "1",
    "--set",
    "budget.tuning=none",
    "train.length=2",
    "model.teach_epochs=1",
    "select.ratio=1.0",
)


def say(text: str) -> None:
    """A line at once."""
    print(text, flush=True)


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What the command prints; ends with its output where it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")
    return done.stdout


def interpreters(named: Sequence[str]) -> list[Path]:
    """The interpreters to try: those named, else of each supported version the one at hand, in PATH
    or in pyenv's folder.
    """
    if named:
        return [Path(path) for path in named]
    chosen = []
    for version in VERSIONS:
        pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        in_path = shutil.which(f"python{version}")
        candidates = [*pyenv, *([Path(in_path)] if in_path else [])]
        chosen += candidates[:1]
        if not candidates:
            say(f"python {version}: not at hand, not tried")
    return chosen


def build(folder: Path) -> tuple[Path, Path]:
    """(wheel, sdist), the wheel built from the sdist, so that this one is whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tool = folder / "build"
    run([sys.executable, "-m", "venv", tool], folder)
    run([tool / "bin/python", "-m", "pip", "install", "-q", "setuptools>=77", "wheel"], folder)
    make = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    run([tool / "bin/python", "-c", make, folder], ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    pip: list[str | Path] = [tool / "bin/python", "-m", "pip", "wheel", "-q", "--no-deps"]
    run([*pip, "-w", folder, sdist], folder)
    (built,) = folder.glob("*.whl")
    return built, sdist


def install(python: Path, folder: Path, requirement: str) -> Path:
    """An environment with the requirement at the constrained versions; its interpreter."""
    run([python, "-m", "venv", folder], ROOT)
    inside = folder / "bin/python"
    pip: list[str | Path] = [inside, "-m", "pip", "install", "-q", "--no-compile"]
    pip += ["--disable-pip-version-check"]
    # three times as quick as the one that an older Python brings
    run([*pip, "--upgrade", "pip>=26"], ROOT)
    run([*pip, "-c", ROOT / "constraints.txt", requirement], ROOT)
    run([inside, "-m", "pip", "check"], ROOT)
    return inside


def try_wheel(python: Path, wheel: Path, folder: Path) -> Path:
    """Install the wheel and use it as a new user does, outside the repository."""
    inside = install(python, folder / "environment", str(wheel))
    command = inside.with_name("rayunlearn")
    run([command, "--help"], folder)
    run([inside, "-c", SMOKE], folder)
    run([command, "init", "mine"], folder)
    run([command, *SMALL_RUN], folder)
    reports = list(folder.glob("runs/*/*/report.html"))
    if not reports:
        raise SystemExit(f"{python}: the run wrote no report")
    say(f"{run([inside, '--version'], folder).strip()}: installed, ran, reported")
    return inside


def try_extras(inside: Path, wheel: Path, folder: Path, names: Sequence[str]) -> None:
    """Each extra by itself: an environment that sees the base's packages and no other extra."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(declared["project"]["optional-dependencies"])
    if extras != {*BROUGHT_BY, *NOT_TRIED}:
        raise SystemExit(f"release.py must say what to try of {extras ^ {*BROUGHT_BY, *NOT_TRIED}}")
    site = run([inside, "-c", "import sysconfig as s; print(s.get_path('purelib'))"], folder)
    for name in names or BROUGHT_BY:
        own = folder / name
        run([inside, "-m", "venv", own], folder)
        (packages,) = own.glob("lib/python*/site-packages")
        (packages / "base.pth").write_text(site, encoding="utf-8")
        pip: list[str | Path] = [own / "bin/python", "-m", "pip", "install", "-q"]
        pip += ["--disable-pip-version-check"]
        wanted = f"rayunlearn[{name}] @ file://{wheel}"
        run([*pip, "--no-compile", "-c", ROOT / "constraints.txt", wanted], folder)
        imports = "; ".join(f"import {module}" for module in BROUGHT_BY[name])
        run([own / "bin/python", "-c", imports], folder)
        shutil.rmtree(own)
        say(f"extra {name}: {', '.join(BROUGHT_BY[name])}")


def main() -> None:
    """Build, then try with each interpreter, then the extras."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="*", default=[], help="interpreters, default: at hand")
    parser.add_argument("--extras", nargs="*", default=[], help="names, default: all")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "release")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    wheel, sdist = build(folder)
    say(f"built {wheel.name}, {sdist.name}")
    for number, python in enumerate(interpreters(chosen.python)):
        tried = folder / f"tried-{number}"
        tried.mkdir()
        inside = try_wheel(python, wheel, tried)
        if number == 0:
            try_extras(inside, wheel, tried, chosen.extras)
        shutil.rmtree(tried)


if __name__ == "__main__":
    main()
