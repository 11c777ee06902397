"""Every command in the documentation is one that the program takes, every link leads somewhere, and
the errors quoted are errors that exist.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rayunlearn.cli.docs_settings import settings_page
from rayunlearn.cli.main import main, parser
from rayunlearn.cli.setting_meanings import MEANINGS
from rayunlearn.config import Trial, field_names, flatten, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import load
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import LossInputs
from rayunlearn.planning.backend import unlearning_backend
from rayunlearn.plugins.load import forget_plugin
from rayunlearn.registry import option_names
from rayunlearn.storage.run import finished_ids
from rayunlearn.trial.input_names import SET_BY_BATCH, inputs_of
from tests.browser import axe_source, browser_page, why_skipped
from tests.test_examples import PUBLIC

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Programs of other people in fenced commands: what would be run is not this machine's to run.
OTHERS = {
    "ray": "needs a cluster; tests/cluster/test_jobs.py starts one",
    "ssh": "needs a head to reach",
    "docker": "needs a registry",
    "kubectl": "needs a Kubernetes cluster; tests/test_deploy.py checks the file",
    "export": "a shell's own",
    "python3": "makes an environment",
    "venv/bin/ray": "needs several machines",
    "venv/bin/pip": "installs",
    "make": "what runs this test",
    "pip": "installs",
}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages ('' is a fence without one)."""
    return [
        text
        for language, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


def commands(page: Path) -> list[str]:
    """Lines of fenced blocks that call the program, without comments and `...`, with their
    continuation lines.
    """
    lines = "\n".join(blocks(page, "", "bash", "sh")).replace("\\\n", " ").splitlines()
    return [
        line.split("  #")[0].strip()
        for line in lines
        if line.startswith("rayunlearn ") and "..." not in line
    ]


ALL = [(page, command) for page in PAGES for command in commands(page)]


def test_there_are_commands() -> None:
    assert len(ALL) > 30


@pytest.mark.parametrize(
    ("page", "command"),
    ALL,
    ids=lambda value: value.stem if isinstance(value, Path) else value[:60],
)
def test_the_program_takes_every_command(page: Path, command: str) -> None:
    chosen = parser().parse_args(shlex.split(command)[1:])
    file = getattr(chosen, "experiment", "")
    # what a page writes itself, or leaves to its reader
    written = (*(f"experiments/{name}.py" for name in ("mine", "hinge", "losses")), "EXPERIMENT.py")
    assert not file or file in written or (ROOT / file).is_file()


# commands that read a finished run or the tables, run as they stand on a run of docs/notebooks
READING = ("list", "show", "frontier", "studies", "report", "init")
RUN_OF_PAGES = re.compile(r"\S*runs/\w+/1$")


def as_in_a_folder(command: str, trial: str) -> list[str]:
    """The words of a page's command, on the run `runs/hello/1` and a trial of it; reports are
    written as Markdown, which the other forms are made beside.
    """
    words = shlex.split(command)[1:]
    words = ["runs/hello/1" if RUN_OF_PAGES.match(word) else word for word in words]
    words = [trial if re.fullmatch("[0-9a-f]{4}", word) else word for word in words]
    if words[0] == "report":
        words = ["report", "runs/hello/1", "--format", "md"]
    # a file is written once
    if words[0] == "init":
        words[1] = f"mine{len(words)}"
    return words


def test_every_command_that_reads_a_run_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder with a run of docs/notebooks, the experiments and the plugin of the page on own
    methods.
    """
    shutil.copytree(ROOT / "docs" / "notebooks" / "runs" / "coreset", tmp_path / "runs/hello/1")
    (tmp_path / "experiments").mkdir()
    page = ROOT / "docs" / "how-to" / "own-method.md"
    for name in ("hinge.py", "losses.py"):
        (tmp_path / "experiments" / name).write_text(blocks(page, "python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    trial = min(finished_ids(tmp_path / "runs/hello/1"))[:8]
    wanted = {
        tuple(as_in_a_folder(command, trial))
        for _, command in ALL
        if shlex.split(command)[1] in READING
    }
    assert {words[0] for words in wanted} == set(READING)
    for words in sorted(wanted):
        assert main(words) == 0, (words, capsys.readouterr())
    forget_plugin(str(tmp_path / "experiments" / "losses.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(
        r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text(encoding="utf-8"))
    )
    inside = [target for target in targets if "://" not in target]
    # by `make docs`
    made = {"settings.md"}
    assert [
        target
        for target in inside
        if not (page.parent / target).exists() and Path(target).name not in made
    ] == []


def test_the_menu_names_pages_that_exist() -> None:
    def named(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [name for value in values for name in named(value)]

    menu = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert [
        name for name in menu if name != "settings.md" and not (ROOT / "docs" / name).is_file()
    ] == []


def test_every_public_function_has_its_place_in_the_reference() -> None:
    pages = "".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")
    )
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    assert {f"{module}.{name}" for module, names in PUBLIC.items() for name in names} <= shown
    for path in shown:
        module, _, name = path.rpartition(".")
        assert name in vars(importlib.import_module(module)), path


def test_the_errors_that_are_explained_are_errors_of_the_program() -> None:
    """The words between the stars stand in the source, where what differs from case to case is left
    out.
    """
    source = "".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "rayunlearn").rglob("*.py")
    )
    rows = [
        line
        for line in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| **")
    ]
    quoted = [words for row in rows for words in re.findall(r"\*\*(.+?)\*\*", row.split(" | ")[0])]
    assert len(quoted) > 10
    assert [words for words in quoted if words not in source and not _built(words, source)] == []


def _built(words: str, source: str) -> bool:
    """`unknown setting`: made of `unknown {kind}` in errors.py."""
    return words.startswith("unknown ") and (f'"{words.removeprefix("unknown ")}"' in source)


def test_the_commands_of_others_are_known() -> None:
    lines = [
        line
        for page in PAGES
        for block in blocks(page, "")
        for line in block.splitlines()
        if re.match(r"(ray|ssh|docker|kubectl|pip) ", line)
    ]
    assert all(line.split()[0] in OTHERS for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_runs_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    """As a new user would: every fenced block, in order, in an empty folder; it ends with a page
    that has a figure.
    """
    page = ROOT / "docs" / "tutorial.md"
    steps = [
        (language, text)
        for language, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in ("bash", "python")
    ]
    script = tmp_path / "steps.sh"
    shell = [
        "set -eu",
        f'rayunlearn() {{ {shlex.quote(sys.executable)} -m rayunlearn "$@"; }}',
        f'python() {{ {shlex.quote(sys.executable)} "$@"; }}',
    ]
    for language, text in steps:
        shell.append(text if language == "bash" else f"python - <<'PYTHON'\n{text}PYTHON")
    script.write_text("\n".join(shell), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = (tmp_path / "runs" / "mine" / "1" / "report.html").read_text(encoding="utf-8")
    assert 'id="plot-coreset"' in report and "12 documents" in report
    assert "jailbreak_prefix" in done.stdout and "heldout_relearning" in done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly in a copy, with the page of settings that `make docs` writes: a link
    that leads nowhere or a page that is missing ends it.
    """
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    tmp_path = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "site"


def test_the_site_has_the_settings_and_the_notebooks(site: Path) -> None:
    assert "data.redundancy" in (site / "settings.html").read_text(encoding="utf-8")
    notebooks = [
        (site / "notebooks" / file.name).with_suffix(".html")
        for file in (ROOT / "docs" / "notebooks").glob("*.ipynb")
    ]
    # their figures are in the page
    assert notebooks and all(
        "data:image/png;base64" in page.read_text(encoding="utf-8") for page in notebooks
    )


# the first page, one with code, one with a figure and folded parts, one of terms, one of functions
SITE_PAGES = (
    "index",
    "tutorial",
    "findings/pretrained-coreset",
    "glossary",
    "reference/statistics",
)


@pytest.mark.skipif(bool(why_skipped()), reason=why_skipped())
def test_the_site_is_accessible_in_both_schemes_at_a_desktops_and_a_phones_width(
    site: Path,
) -> None:
    """axe-core finds nothing, and no page is wider than its window. That it would find something:
    tests/reporting/test_accessibility.py.
    """
    with browser_page() as page:
        for name in SITE_PAGES:
            for width, dark in ((1280, False), (400, True)):
                page.open(site / f"{name}.html", width=width, dark=dark)
                assert page.accessibility_errors(axe_source()) == [], (name, width, dark)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                scheme = page.evaluate("document.body.dataset.mdColorScheme")
                assert scheme == ("slate" if dark else "default")


@pytest.mark.skipif(bool(why_skipped()), reason=why_skipped())
def test_the_site_is_searched_from_a_folder_and_loads_nothing_from_elsewhere(site: Path) -> None:
    """A page that no server sends may start no worker; "gold" leads to the glossary."""
    typed = """new Promise(done => {
        const field = document.querySelector(".md-search__input");
        document.querySelector("#__search").click();
        field.value = "gold";
        const timer = setInterval(() => {
            field.dispatchEvent(new Event("keyup"));
            const hits = [...document.querySelectorAll(".md-search-result__link")];
            if (hits.length) { clearInterval(timer); done(hits.map(hit => hit.href)); }
        }, 200);
    })"""
    with browser_page() as page:
        page.open(site / "index.html", width=1280)
        hits = page.evaluate(typed)
    assert any("glossary.html" in hit for hit in hits[:5]), hits[:5]
    sources = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?https?:", re.IGNORECASE)
    for file in site.rglob("*.html"):
        hits = [
            h for h in sources.findall(file.read_text(encoding="utf-8")) if "canonical" not in h
        ]
        assert hits == [], file.name


@pytest.mark.skipif(bool(why_skipped()), reason=why_skipped())
def test_a_figure_on_a_phone_keeps_its_letters_and_scrolls_by_itself(site: Path) -> None:
    sizes = "[...document.querySelectorAll('p > img')].map(i => [i.width, i.naturalWidth])"
    with browser_page() as page:
        for name in ("index", "findings/pretrained-coreset"):
            page.open(site / f"{name}.html", width=400)
            shown = page.evaluate(sizes)
            assert shown and all(width == natural for width, natural in shown), (name, shown)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, name


def test_the_page_on_own_methods_is_code_that_runs(tmp_path: Path) -> None:
    """Its file is planned and checked as it stands there, its loss is what the page says, and the
    names of tensors in its table are all that there are.

    By hand, margin 3: tokens of 1 and 5 nats are 2 under and over it, so their mean is 1; what is
    not labelled does not count.
    """
    page = ROOT / "docs" / "how-to" / "own-method.md"
    file = tmp_path / "hinge.py"
    file.write_text(blocks(page, "python")[0], encoding="utf-8")
    try:
        experiment = load(file)
        for margin in (2.0, 6.0):
            trial = with_values(experiment.base, {"hinge.margin": margin})
            assert unlearning_backend().check(trial).method.forget == "hinge"
        loss = FORGET["hinge"].function(
            torch.tensor([[1.0, 5.0, 0.0]]), torch.tensor([[True, True, False]])
        )
        assert float(loss) == 1.0
    finally:
        forget_plugin(str(file.resolve()))
    text = page.read_text(encoding="utf-8")
    named = {
        name
        for row in re.findall(r"^\| (`.+?) \|", text, re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    plain = {*inputs_of(LossInputs), *SET_BY_BATCH}
    assert plain <= named and all(name in plain or name.endswith("_token_nll") for name in named)


def test_every_setting_has_a_meaning_and_its_allowed_values_are_those_that_are_taken() -> None:
    """Choices are taken one by one and another word is refused; of a range the value beyond each
    bound is refused.
    """
    assert set(MEANINGS) == set(field_names())
    beyond = {">= ": -1, "> ": 0}
    for name, meaning in MEANINGS.items():
        kind = type(flatten(Trial())[name])
        if isinstance(meaning.allowed, tuple) and kind is str:
            refused: list[Any] = ["nonsense"]
            assert flatten(Trial())[name] in meaning.allowed
        elif isinstance(meaning.allowed, str) and re.fullmatch(r">=? \d+", meaning.allowed):
            sign, bound = meaning.allowed.split(" ")
            refused = [kind(float(bound)) + beyond[f"{sign} "]]
        elif match := re.fullmatch(r"([\[(])(\d+), (\d+)([\])])", str(meaning.allowed)):
            left, low, high, right = match.groups()
            refused = [
                kind(low) - (1 if left == "[" else 0),
                kind(high) + (1 if right == "]" else 0),
            ]
        else:
            continue
        for value in refused:
            with pytest.raises(UserError):
                with_values(Trial(), {name: value})


def test_the_page_of_settings_names_every_setting_and_every_hyperparameter() -> None:
    named = set(re.findall(r"^\| `([\w.]+)`", settings_page(), re.MULTILINE))
    assert named == {*field_names(), *option_names()}


def test_the_tables_of_the_performance_page_are_those_of_the_measured_files() -> None:
    """`python -m benchmarks.page` makes them; nothing in its blocks is written by hand."""
    from benchmarks.page import BLOCK, MEASURED, PAGE, TABLES, made

    text = PAGE.read_text(encoding="utf-8")
    assert made(text, MEASURED) == text
    assert {match[1] for match in BLOCK.finditer(text)} <= set(TABLES)
