"""The runs of experiments/optimizers.py, attacked: `python -m experiments.findings.optimizers RUN
[RUN ...]`.

What an attack recovers is the value after it less the value before it, of the same documents and
seeds. Each optimizer is compared with AdamW on the same method.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from rayunlearn.analysis.hypothesis_tests import Estimate, difference, holm, paired_p
from rayunlearn.analysis.intervals import bounds_of, mean_interval
from rayunlearn.analysis.run_frames import (
    MetricValues,
    measured_of,
    objective_of,
    trials_with_roles,
    values_by_trial,
)
from rayunlearn.storage.run import Run, open_run

COMPARED_WITH = "adamw"
SIGNIFICANT = 0.05
CELL = ["stage", "method.forget", "train.optimizer"]


@dataclass(frozen=True, kw_only=True)
class OptimizerCell:
    """A method with an optimizer, or base or gold (both names ''): its trials by seed, its
    settings, the attacks on these trials by setting, and the values of all of them on the forget
    questions and on the objective's utility split.
    """

    stage: str
    method: str
    optimizer: str
    settings: str
    trials: tuple[str, ...]
    attacked: Mapping[str, tuple[str, ...]]
    forget: MetricValues
    utility: MetricValues
    bounds: tuple[float, float] | None

    @property
    def name(self) -> str:
        """`npo, sign`, or `gold`."""
        return f"{self.method}, {self.optimizer}" if self.method else self.stage

    def recovered(self, attack: str) -> Estimate:
        """Mean after the attack less mean before it."""
        after, before = (self.forget.rows(t) for t in (self.attacked[attack], self.trials))
        return difference(after, before, groups=self.forget.groups)

    def more_than(self, other: "OptimizerCell", attack: str) -> Estimate:
        """What the attack recovers here less what it recovers there."""
        mine, theirs = (
            cell.forget.rows(cell.attacked[attack]) - cell.forget.rows(cell.trials)
            for cell in (self, other)
        )
        return difference(mine, theirs, groups=self.forget.groups)


def optimizer_cells(run: Run) -> list[OptimizerCell]:
    """The grid's cells, with base and gold."""
    rows = trials_with_roles(run).filter(pl.col("role").is_in(["grid", "base", "gold"]))
    rows = rows.sort("train.seed").unique("trial_id", maintain_order=True)
    names = rows.select(CELL).unique().sort(CELL).rows()
    goal, attacks = objective_of(run.experiment), run.attacks.collect()
    forget = _with_attacks(run, goal.forgetting, attacks)
    utility = values_by_trial(run, goal.utility_split, goal.utility, "unlearned")
    searched = [name for name in run.experiment.get("search", {}) if name in rows.columns]
    cells = []
    for name in names:
        cell = rows.filter(*(pl.col(c) == v for c, v in zip(CELL, name, strict=True)))
        first, is_unlearned = cell.row(0, named=True), name[0] == "unlearned"
        chosen = [f"{n} {first[n]:.3g}" for n in searched if first[n] is not None]
        trials = tuple(cell["trial_id"].to_list())
        cells.append(
            OptimizerCell(
                stage=name[0],
                method=name[1] if is_unlearned else "",
                optimizer=name[2] if is_unlearned else "",
                settings=", ".join(chosen) if is_unlearned else "-",
                trials=trials,
                attacked=_attacked(attacks, trials),
                forget=forget,
                utility=utility,
                bounds=bounds_of(run.experiment, goal.forgetting),
            )
        )
    return cells


def _attacked(attacks: pl.DataFrame, trials: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Attacks of the trials, by setting, in the order of the trials."""
    table: dict[str, tuple[str, ...]] = {}
    for setting in attacks["setting"].unique(maintain_order=True).to_list():
        of_setting = attacks.filter(pl.col("setting") == setting, pl.col("role") != "tuning")
        by_trial = dict(of_setting.select("attacked", "trial_id").iter_rows())
        if all(trial in by_trial for trial in trials):
            table[setting] = tuple(by_trial[trial] for trial in trials)
    return table


def _with_attacks(run: Run, metric: str, attacks: pl.DataFrame) -> MetricValues:
    """The metric on the forget questions, of trials before an attack and of attacks after it."""
    is_attack = pl.col("trial_id").is_in(attacks["trial_id"].to_list())
    counts = is_attack == (pl.col("attack") != "none")
    rows = run.examples.filter(pl.col("split") == "forget", pl.col("metric") == metric, counts)
    return measured_of(rows.collect())


def comparisons(cells: Sequence[OptimizerCell]) -> list[tuple[str, str, Estimate, float]]:
    """(cell, attack, what it recovers more than with AdamW, p by Holm over all) of every
    optimizer and method.
    """
    reference = {cell.method: cell for cell in cells if cell.optimizer == COMPARED_WITH}
    pairs = [
        (cell, attack)
        for cell in cells
        if cell.method and cell.optimizer != COMPARED_WITH
        for attack in cell.attacked
        if cell.method in reference and attack in reference[cell.method].attacked
    ]
    found = [cell.more_than(reference[cell.method], attack) for cell, attack in pairs]
    corrected = holm([paired_p(estimate) for estimate in found])
    return [
        (cell.name, attack, estimate, p)
        for (cell, attack), estimate, p in zip(pairs, found, corrected, strict=True)
    ]


def comparison(runs: Sequence[Run]) -> str:
    """Everything in Markdown: a line for each cell, and the comparisons with AdamW."""
    cells = [cell for run in runs for cell in optimizer_cells(run)]
    attacks = list(dict.fromkeys(attack for cell in cells for attack in cell.attacked))
    heads = cell_headers(attacks)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = dict.fromkeys(cell_values(cell, attacks) for cell in cells)
    lines += [f"| {' | '.join(values)} |" for values in rows]
    return "\n".join([*lines, "", *comparison_sentences(cells)])


def comparison_sentences(cells: Sequence[OptimizerCell]) -> list[str]:
    """What each attack recovers more or less than with AdamW, a sentence for each."""
    return [
        f"{name}: {attack} recovers {estimate.mean:+.3f} more than with {COMPARED_WITH}"
        f" (p {p:.2g}, {'shown' if p < SIGNIFICANT else 'not shown'})"
        for name, attack, estimate, p in comparisons(_comparable(cells))
    ]


def _comparable(cells: Sequence[OptimizerCell]) -> list[OptimizerCell]:
    """All cells that were asked the same questions in the same order, so that they pair."""
    first = cells[0].forget.documents
    return [cell for cell in cells if cell.forget.documents == first]


def cell_headers(attacks: Sequence[str]) -> tuple[str, ...]:
    """The columns of `cell_values`."""
    after = (f"after {attack}" for attack in attacks)
    return ("method, optimizer", "settings", "left", "utility", *after)


def cell_values(cell: OptimizerCell, attacks: Sequence[str]) -> tuple[str, ...]:
    """A cell in words: its settings, what is left, what utility, and what after each attack."""
    after = [
        _words(cell, cell.forget, cell.attacked[attack]) if attack in cell.attacked else "-"
        for attack in attacks
    ]
    left, utility = (_words(cell, of, cell.trials) for of in (cell.forget, cell.utility))
    return (cell.name, cell.settings, left, utility, *after)


def _words(cell: OptimizerCell, measured: MetricValues, trials: Sequence[str]) -> str:
    interval = mean_interval(measured.rows(trials), groups=measured.groups, bounds=cell.bounds)
    if interval.mean is None:
        return "-"
    ends = "" if interval.low is None else f" [{interval.low:.2f}, {interval.high:.2f}]"
    return f"{interval.mean:.2f}{ends}"


if __name__ == "__main__":
    print(comparison([open_run(folder) for folder in sys.argv[1:]]))
