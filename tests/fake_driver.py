"""A driver process with fake work: `python -m tests.fake_driver OUTPUT SECONDS_PER_TRIAL [WORKERS
[SEEDS]]`; exits as `rayunlearn run` does.
"""

import sys

from rich.console import Console

from rayunlearn.cli.arguments import INTERRUPTED, MISTAKE
from rayunlearn.cli.output import print_conclusion, sigterm_as_interrupt
from rayunlearn.cluster.sweep import sweep
from rayunlearn.config import Objective, Trial, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, Range, grids_of
from rayunlearn.planning.plan_run import Options
from rayunlearn.storage.sync import output_place
from tests.fake_work import fake_work

GRID = {
    "method.forget": ("npo", "rmu"),
    "select.ratio": (0.25, 1.0),
    ("select.seed", "train.seed"): (0, 1),
}


def tuned(seconds: float, n_seeds: int = 2) -> Experiment:
    """Two groups of 4 tuning trials in batches of 2, 4 cells and 2 controls each: 24 trials or two
    fewer. More seeds: 6 more with each.
    """
    grid = GRID | {("select.seed", "train.seed"): tuple(range(n_seeds))}
    return Experiment(
        name="fake",
        question="?",
        base=with_values(Trial(), {"train.warmup_fraction": seconds}),
        grids=grids_of(grid),
        search={"train.learning_rate": Range(1e-5, 1e-2, log=True)},
        budget=Budget(trials=4, batch=2),
        objective=Objective(),
    )


def main() -> int:
    """Sweep, say how it ended."""
    console = Console(width=200)
    output, seconds, workers, n_seeds = (*sys.argv[1:], *("2", "2")[len(sys.argv) - 3 :])
    try:
        experiment, options = tuned(float(seconds), int(n_seeds)), Options(workers=int(workers))
        with sigterm_as_interrupt() as sigterm:
            result = sweep(
                experiment, output_place(output), work=fake_work(), options=options, console=console
            )
    except UserError as error:
        print(f"rayunlearn: {error}", file=sys.stderr)
        return MISTAKE
    print(f"ray imported: {'ray' in sys.modules}")
    words = ["python", "-m", "tests.fake_driver", *sys.argv[1:]]
    status = print_conclusion(result, words, console)
    return sigterm.status if status == INTERRUPTED else status


if __name__ == "__main__":
    sys.exit(main())
