"""A driver process with fake work: `python -m tests.fake_driver OUTPUT SECONDS_PER_TRIAL`; exits as `rayunlearn run` does."""

import sys

from rich.console import Console

from rayunlearn.cli import conclude
from rayunlearn.cluster.sweep import Options, sweep
from rayunlearn.config import Trial, with_values
from rayunlearn.experiment import Budget, Experiment, Objective, Range, grids_of
from rayunlearn.results.mirror import output_place
from tests.fake_work import fake_work

GRID = {"method.forget": ("npo", "rmu"), "select.ratio": (0.25, 1.0), ("select.seed", "train.seed"): (0, 1)}


def tuned(seconds: float) -> Experiment:
    """Two groups of 4 tuning trials in batches of 2, 4 cells and 2 controls each: 24 trials or two fewer."""
    return Experiment(
        name="fake",
        question="?",
        base=with_values(Trial(), {"train.warmup_fraction": seconds}),
        grids=grids_of(GRID),
        search={"train.learning_rate": Range(1e-5, 1e-2, log=True)},
        budget=Budget(trials=4, batch=2),
        objective=Objective(),
    )


def main() -> int:
    """Sweep, say how it ended."""
    console = Console(width=200)
    result = sweep(tuned(float(sys.argv[2])), output_place(sys.argv[1]), work=fake_work(), options=Options(workers=2), console=console)
    print(f"ray imported: {'ray' in sys.modules}")
    return conclude(result, ["python", "-m", "tests.fake_driver", *sys.argv[1:]], console)


if __name__ == "__main__":
    sys.exit(main())
