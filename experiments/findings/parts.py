"""What `make findings` runs, in one table: each experiment with its preset and what attacks its
models afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayunlearn.errors import unknown_name

LAPTOP = "laptop"


@dataclass(frozen=True, kw_only=True)
class Part:
    """An experiment at the size of its preset. `attacks`: the words after `rayunlearn attack RUN`,
    where its file does not name them (ATTACKS).
    """

    experiment: str
    preset: str = LAPTOP
    attacks: str = ""

    @property
    def version(self) -> str:
        """`1`, or `1-quick` of preset quick: the name of its run's folder."""
        return "1" if self.preset == LAPTOP else f"1-{self.preset}"

    def folder(self, output: Path) -> Path:
        """Where its run is."""
        return output / self.experiment / self.version

    def commands(self, output: Path) -> list[list[str]]:
        """The words after `rayunlearn` of what it runs, in order. Each skips what has finished."""
        file = f"experiments/{self.experiment}.py"
        run = ["run", file, "--preset", self.preset, "--output", str(output)]
        attack = ["attack", str(self.folder(output)), *self.attacks.split()]
        return [run, attack] if self.attacks else [run]


# the first of an experiment is the one that its page is made of; those on generated datasets first
PARTS: Sequence[Part] = (
    Part(experiment="coreset_effect"),
    Part(experiment="keyword_effect"),
    Part(experiment="steps_or_data"),
    Part(experiment="redundancy"),
    Part(experiment="selectors"),
    Part(experiment="keywords"),
    Part(experiment="control"),
    Part(experiment="truly_unlearned"),
    Part(experiment="dilemma"),
    Part(experiment="faithfulness"),
    Part(
        experiment="defences",
        attacks="--trials grid --seeds 1"
        " --attacks relearning,heldout_relearning,unrelated_training,few_shot_retain",
    ),
    Part(experiment="metric_faithfulness"),
    Part(experiment="linked_questions", attacks="--trials grid --panel linked"),
    Part(experiment="retain_coreset"),
    Part(
        experiment="optimizers",
        attacks="--trials grid --seeds 1 --attacks relearning,round_to_nearest",
    ),
    Part(experiment="pretrained_coreset"),
    Part(experiment="pretrained_coreset", preset="languages"),
    Part(experiment="pretrained_control", preset="quick"),
    Part(experiment="pretrained_dilemma", preset="quick"),
    Part(experiment="pretrained_unlearned", preset="quick"),
    Part(experiment="pretrained_tofu"),
    Part(experiment="pretrained_books"),
    Part(experiment="pretrained_mmlu"),
)


def parts_of(names: str) -> list[Part]:
    """The parts of these experiments, separated by commas; all for ''. Raises UserError for an
    experiment that is not in the table.

    Example:
        >>> [part.version for part in parts_of("pretrained_coreset")]
        ['1', '1-languages']
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    experiments = [part.experiment for part in PARTS]
    for name in chosen:
        if name not in experiments:
            raise unknown_name("experiment of the findings", name, dict.fromkeys(experiments))
    return [part for part in PARTS if not chosen or part.experiment in chosen]


def version_of(experiment: str) -> str:
    """The version that an experiment's page is made of.

    Example:
        >>> version_of("pretrained_control"), version_of("control")
        ('1-quick', '1')
    """
    return parts_of(experiment)[0].version
