"""The two runs of experiments/lasting.py side by side: `python -m experiments.findings.lasting
RUN_AFTER RUN_BEFORE`.

RUN_AFTER tuned its methods for what relearning leaves, RUN_BEFORE for what training leaves; both
measured both.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import polars as pl

from rayunlearn.analysis.hypothesis_tests import Estimate, difference, holm, paired_p
from rayunlearn.analysis.intervals import Interval, bounds_of, mean_interval
from rayunlearn.analysis.run_frames import (
    MetricValues,
    objective_of,
    trials_with_roles,
    values_by_trial,
)
from rayunlearn.storage.run import Run, open_run

SIGNIFICANT = 0.05
# what a trial is measured at: as training left it, and after its own attack
STAGES = ("unlearned", "attacked")
MEASURED = ("complete", "collapsed")


@dataclass(frozen=True, kw_only=True)
class TunedMethod:
    """The cell of a method in one run: its trials by seed, its settings, and its values by stage,
    (seeds, documents) matrices behind `measured`.
    """

    name: str
    trials: tuple[str, ...]
    settings: Mapping[str, float]
    measured: Mapping[str, MetricValues]

    def minus(self, other: "TunedMethod", stage: str) -> Estimate:
        """This cell's mean less the other's, paired over documents."""
        first, second = self.measured[stage], other.measured[stage]
        return difference(first.rows(self.trials), second.rows(other.trials), groups=first.groups)


def tuned_methods(run: Run) -> dict[str, TunedMethod]:
    """The grid's cells by method, in the order of the plan."""
    metric = objective_of(run.experiment).forgetting
    measured = {stage: values_by_trial(run, "forget", metric, stage) for stage in STAGES}
    rows = trials_with_roles(run).filter(pl.col("status").is_in(MEASURED), role="grid")
    rows = rows.sort("train.seed")
    searched = [name for name in run.experiment.get("search", {}) if name in rows.columns]
    methods = {}
    for name in rows["method.forget"].unique(maintain_order=True).sort().to_list():
        cell = rows.filter(pl.col("method.forget") == name)
        first = cell.row(0, named=True)
        methods[name] = TunedMethod(
            name=name,
            trials=tuple(cell["trial_id"].to_list()),
            settings={key: first[key] for key in searched if first[key] is not None},
            measured=measured,
        )
    return methods


def gold_values(run: Run) -> dict[str, Interval]:
    """Gold's own value, and after the same attack."""
    goal = objective_of(run.experiment)
    gold = trials_with_roles(run).filter(role="gold")["trial_id"].unique().to_list()
    bounds = bounds_of(run.experiment, goal.forgetting)
    return {
        stage: _interval(values_by_trial(run, "forget", goal.forgetting, stage), gold, bounds)
        for stage in STAGES
    }


def aims_differ(after: Run, before: Run) -> list[tuple[str, Estimate, float]]:
    """For each method: what relearning leaves where it was tuned for that, less where it was tuned
    for what training leaves, and the p-value, Holm over methods.
    """
    for_after, for_before = tuned_methods(after), tuned_methods(before)
    names = [name for name in for_after if name in for_before]
    estimates = [for_after[name].minus(for_before[name], "attacked") for name in names]
    corrected = holm([paired_p(estimate) for estimate in estimates])
    return list(zip(names, estimates, corrected, strict=True))


@dataclass(frozen=True, kw_only=True)
class PairOrder:
    """Two methods: the first's mean less the second's before the attack and after it, with p-values
    (Holm over all of them).
    """

    first: str
    second: str
    before: Estimate
    after: Estimate
    before_p: float
    after_p: float

    @property
    def changes(self) -> bool:
        """Whether the two are the other way round after the attack."""
        return self.before.mean * self.after.mean < 0

    @property
    def is_shown(self) -> bool:
        """Whether they change places and both differences are significant."""
        return self.changes and max(self.before_p, self.after_p) < SIGNIFICANT


def pair_orders(after: Run, before: Run) -> list[PairOrder]:
    """Every pair of methods: before the attack as the run `before` tuned them, after it as the run
    `after` did. The same run twice: the same models before and after.
    """
    for_after, for_before = tuned_methods(after), tuned_methods(before)
    pairs = list(combinations([name for name in for_after if name in for_before], 2))
    at_end = [for_before[a].minus(for_before[b], "unlearned") for a, b in pairs]
    attacked = [for_after[a].minus(for_after[b], "attacked") for a, b in pairs]
    estimates = list(zip(at_end, attacked, strict=True))
    corrected = holm([paired_p(estimate) for both in estimates for estimate in both])
    return [
        PairOrder(
            first=a,
            second=b,
            before=estimates[i][0],
            after=estimates[i][1],
            before_p=corrected[2 * i],
            after_p=corrected[2 * i + 1],
        )
        for i, (a, b) in enumerate(pairs)
    ]


def comparison(after: Run, before: Run) -> str:
    """Everything in Markdown: a table of the cells, and the two questions."""
    lines = [
        "| method | tuned for | settings | before | after relearning | retain |",
        "|---|---|---|---|---|---|",
    ]
    for name in tuned_methods(after):
        for aim, run in (("before", before), ("after", after)):
            method = tuned_methods(run).get(name)
            lines += [_line(run, method, aim)] if method else []
    gold = gold_values(after)
    lines += [f"| gold | - | - | {_words(gold['unlearned'])} | {_words(gold['attacked'])} | |", ""]
    lines += [
        f"{name}: relearning leaves {estimate.mean:+.3f} when tuned for that (p {p:.2g}, Holm)"
        for name, estimate, p in aims_differ(after, before)
    ]
    lines += ["", "Tuned for before, and relearned:", *_orders(pair_orders(before, before))]
    lines += ["", "Each tuned for its moment:", *_orders(pair_orders(after, before))]
    return "\n".join(lines)


def _orders(pairs: Sequence[PairOrder]) -> list[str]:
    lines = [
        f"{pair.first} - {pair.second}: before {pair.before.mean:+.3f} (p {pair.before_p:.2g}),"
        f" after {pair.after.mean:+.3f} (p {pair.after_p:.2g}){_place(pair)}"
        for pair in pairs
    ]
    n_changed, n_shown = sum(p.changes for p in pairs), sum(p.is_shown for p in pairs)
    return [*lines, f"{n_changed} of {len(pairs)} pairs change places, {n_shown} of them shown."]


def _line(run: Run, method: TunedMethod, aim: str) -> str:
    goal = objective_of(run.experiment)
    bounds = bounds_of(run.experiment, goal.forgetting)
    before, after = (_interval(method.measured[stage], method.trials, bounds) for stage in STAGES)
    utility = _interval(
        values_by_trial(run, goal.utility_split, goal.utility, "unlearned"),
        method.trials,
        bounds_of(run.experiment, goal.utility),
    )
    settings = ", ".join(f"{key} {value:.3g}" for key, value in method.settings.items())
    parts = (method.name, aim, settings, _words(before), _words(after), _words(utility))
    return f"| {' | '.join(parts)} |"


def _interval(
    measured: MetricValues, trials: Sequence[str], bounds: tuple[float, float] | None
) -> Interval:
    return mean_interval(measured.rows(trials), groups=measured.groups, bounds=bounds)


def _words(interval: Interval) -> str:
    if interval.mean is None:
        return "-"
    ends = "" if interval.low is None else f" [{interval.low:.2f}, {interval.high:.2f}]"
    return f"{interval.mean:.3f}{ends}"


def _place(pair: PairOrder) -> str:
    if not pair.changes:
        return ""
    return "; changes places" + (", shown" if pair.is_shown else ", not shown")


if __name__ == "__main__":
    print(comparison(*(open_run(folder) for folder in sys.argv[1:3])))
