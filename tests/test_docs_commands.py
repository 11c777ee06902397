"""Commands of the documentation that train or attack: each is read by the real parser, and its plan
is made by the real planner, so that a wrong flag, experiment, preset, setting, method, metric,
panel or attack in a page fails here. What only reads is run (tests/test_docs.py).
"""

import argparse
import re
import shlex
import shutil
from pathlib import Path

import pytest

from rayunlearn.attacks.table import ATTACKS
from rayunlearn.cli.arguments import experiment_of
from rayunlearn.cli.attack import panel_of_options
from rayunlearn.cli.main import main, parser
from rayunlearn.config import Trial, digest, flatten, parse_assignments, with_values
from rayunlearn.errors import UserError
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.metrics.table import METRICS
from rayunlearn.planning.attack_planner import attack_targets
from rayunlearn.planning.planner import Planner
from rayunlearn.plugins.load import forget_plugin, plugins
from rayunlearn.registry import check_trial
from rayunlearn.storage.run import open_run
from tests.test_docs import ALL, FENCE, PAGES, ROOT, RUN_OF_PAGES, blocks

PLANNED = ("plan", "run", "prepare", "submit")
# those that name what they are about
INLINE = re.compile(
    r"`(rayunlearn (?:(?:plan|run|prepare|submit) experiments/|attack (?:RUN|runs/))[^`]*)`"
)
# what a page leaves to its reader, as words or as parts of a setting
PLACEHOLDER = re.compile(r"\b(?:EXPERIMENT|NAME)\b|\.\.\.")
# the run that stands for every run of a page, and the id of a trial for those of a page
RUN = "runs/hello/1"
TRIAL_ID = re.compile(r"[0-9a-f]{4}(?:,[0-9a-f]{4})*")


def inline_commands(page: Path) -> list[str]:
    """Commands between backticks in a page's sentences, without those that leave a name open."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [command for command in INLINE.findall(text) if not PLACEHOLDER.search(command)]


EVERY = [command for _, command in ALL] + [line for page in PAGES for line in inline_commands(page)]


def of(*names: str) -> list[str]:
    """The distinct commands of these names, whether fenced or in a sentence."""
    return sorted({command for command in EVERY if shlex.split(command)[1] in names})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the experiments of a clone, those that pages write, a corpus, a run."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    shutil.copytree(ROOT / "docs" / "notebooks" / "runs" / "coreset", folder / RUN)
    method = blocks(ROOT / "docs" / "how-to" / "own-method.md", "python")[0]
    for name in ("hinge.py", "losses.py"):
        (folder / "experiments" / name).write_text(method, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["init", "mine"]) == 0
    (folder / "tasks").mkdir()
    shutil.copytree(folder / "corpus" / "mine", folder / "CORPUS")
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin of a page is there before its command, nor after."""
    monkeypatch.chdir(folder)
    for plugin in plugins():
        forget_plugin(plugin.origin)


def chosen_of(command: str) -> argparse.Namespace:
    """What the parser makes of a command, on the run of the folder."""
    words = shlex.split(command)[1:]
    words = [
        RUN if word == "RUN" or ("=" not in word and RUN_OF_PAGES.match(word)) else word
        for word in words
    ]
    return parser().parse_args(words)


def identify(trial: Trial) -> str:
    """An id without the content of data and models, which other machines have."""
    return digest(flatten(trial))


def planned_trials(command: str) -> list[str]:
    """Roles of the trials that a command would begin with."""
    chosen = chosen_of(command)
    # of the run's own machine, and checked by what starts there (tests/cluster, tests/cli)
    chosen.output = "runs"
    experiment = experiment_of(chosen)
    planner = Planner(experiment, check_trial, identify)
    return [row.role for row in planner.agenda({}).rows]


@pytest.mark.parametrize("command", of(*PLANNED))
def test_an_experiment_of_a_page_can_be_planned(command: str) -> None:
    roles = planned_trials(command)
    assert "base" in roles and len(roles) > 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("plan experiments/helo.py", "helo.py"),
        ("plan experiments/hello.py --preset laptob", "laptop"),
        ("plan experiments/hello.py --set npo.betta=1", "npo.beta"),
        ("run experiments/hello.py --set method.forget=nop", "npo"),
        ("run experiments/hello.py --set measure.metrics=rouge_l_recal", "rouge_l_recall"),
        ("run experiments/hello.py --recipe tofu", "recipe"),
        ("attack RUN --panel quik", "quick"),
        ("attack RUN --attacks relerning", "relearning"),
        ("attack RUN --trials bst", "trial"),
        ("attack RUN --metric probabilty", "probability"),
    ],
)
def test_a_wrong_name_in_a_page_would_fail_here(command: str, words: str) -> None:
    check = check_attack if command.startswith("attack") else planned_trials
    with pytest.raises(UserError, match=words):
        check(f"rayunlearn {command}")


@pytest.mark.parametrize("flag", ["--atacks relearning", "--sets a=b"])
def test_a_wrong_flag_in_a_page_would_fail_here(flag: str) -> None:
    with pytest.raises(SystemExit):
        chosen_of(f"rayunlearn attack RUN {flag}")


def check_attack(command: str) -> None:
    """What `rayunlearn attack` looks at before it loads a model, and the names that it meets
    later. Raises UserError.
    """
    chosen = chosen_of(command)
    panel = panel_of_options(chosen)
    assert panel.entries and all(entry.name in ATTACKS for entry in panel.entries)
    chosen_metrics(chosen.metric or "probability")
    if chosen.model:
        data = {"data.name": chosen.benchmark, "data.path": chosen.data}
        check_trial(with_values(Trial(), data | parse_assignments(chosen.assignments)))
        return
    run = open_run(Path(chosen.run))
    if TRIAL_ID.fullmatch(chosen.trials):
        chosen.trials = ",".join(run.trials.head(2).collect()["trial_id"])
    assert attack_targets(run, chosen.trials)


@pytest.mark.parametrize("command", of("attack"))
def test_an_attack_of_a_page_has_its_panel_its_trials_and_its_metric(command: str) -> None:
    check_attack(command)


@pytest.mark.parametrize("command", of("harness"))
def test_a_harness_command_of_a_page_has_its_trials(command: str) -> None:
    """The names of tasks are the harness's, which few have installed."""
    chosen = chosen_of(command)
    assert attack_targets(open_run(Path(chosen.run)), chosen.trials)
    assert chosen.include_path is None or chosen.include_path.is_dir()


@pytest.mark.parametrize("command", of("evaluate", "keywords", "score"))
def test_a_command_on_documents_names_a_metric_and_an_extractor_that_there_is(command: str) -> None:
    chosen = chosen_of(command)
    if getattr(chosen, "metrics", ""):
        assert set(chosen_metrics(chosen.metrics)) <= set(METRICS)
    if getattr(chosen, "extractor", ""):
        assert chosen.extractor in EXTRACTORS


def test_cards_of_a_page_are_written_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    written, compared = of("card"), of("compare")
    assert len(written) == len(compared) == 1
    assert main(shlex.split(written[0])[1:]) == 0
    shutil.copytree("hello-card", "THEIR-CARD")
    assert main(shlex.split(compared[0])[1:]) == 0
    assert capsys.readouterr().out


def test_keywords_of_a_page_are_written() -> None:
    """The command of the page on one's own corpus, as it stands."""
    assert main(shlex.split("keywords domain --extractor linked --output keywords.parquet")) == 0
    assert Path("keywords.parquet").is_file()
