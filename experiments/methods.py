"""What do all methods do on the same dataset, at the same number of steps, and what do they cost?

Question: every forget loss with the retain loss of its paper, and NPO with every wrapper, token
rule and adapter, on the full forget set of the tiny domain dataset: how much is forgotten, how much
kept, how many seconds and bytes does a step take?

Hypothesis: losses that see only the answer's likelihood differ less from each other, each at its
own learning rate, than one of them differs between two learning rates. What would refute it: at the
best rate of each, intervals of forget probability that lie apart by more than those of one loss at
neighbouring rates.

This is a look and no ranking: four learning rates with seed 0, the best of them with seeds 1 and 2
too, every other hyperparameter at its default or its paper's.

`rayunlearn run experiments/methods.py` runs seed 0 on Ray. `python -m experiments.methods [RUNS]
[PAGE]` runs what is missing, one process per method so that its memory can be seen, and writes the
page (default: runs docs/methods.md). (Not as a
file: Python would then find `experiments/selectors.py` where its own library imports `selectors`.)
"""

import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayunlearn.config import Method, Stop, Train, Trial, Value, flatten, with_values
from rayunlearn.experiment import Budget, Objective, load

BASE = Trial(
    method=Method(layer=1),
    train=Train(length=60, batch_size=8),
    stop=Stop(utility_floor=0.1, check_every=20),
)
RATES = {"train.learning_rate": (3e-4, 1e-3, 3e-3, 1e-2)}
BY_LIKELIHOOD = ("ga", "npo", "dpo", "altpo", "idk", "undial", "wga", "ce_u")
AXES = (
    RATES | {"method.forget": BY_LIKELIHOOD},
    # published pairs of weights; the dual weight of PDU starts at 50 (its read-me: 50 to 100)
    RATES
    | {
        ("method.forget", "method.forget_weight", "method.retain_weight"): (
            ("simnpo", 0.125, 1.0),
            ("satimp", 0.1, 1.0),
            ("pdu", 1.0, 50.0),
        )
    },
    RATES
    | {
        ("method.forget", "method.retain"): (
            ("rmu", "activation"),
            ("adaptive_rmu", "activation"),
            ("llmu", "kl"),
            ("llmu_two_term", "kl"),
        )
    },
    RATES
    | {
        ("method.forget", "method.retain", "negate.scale"): (
            ("task_vector", "none", 1.0),
            ("task_vector", "none", 16.0),
        )
    },
    RATES | {"method.forget": ("npo",), "method.wrappers": ("sam", "average", "ball")},
    RATES
    | {
        "method.forget": ("npo",),
        ("token.temperature", "token.keep", "token.cap"): (
            (2.0, 1.0, 0.0),
            (1.0, 0.5, 0.0),
            (1.0, 1.0, 40.0),
        ),
    },
    RATES | {"method.forget": ("npo",), "train.adapter": ("lora",)},
    RATES | {"method.forget": ("npo",), "train.parameters": (r"down_proj",)},
)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

# of the learning rate that seed 0 chose
SEEDS = (1, 2)

SHOWN = (
    "method.retain",
    "method.forget_weight",
    "method.retain_weight",
    "method.wrappers",
    "train.adapter",
    "train.parameters",
)
SHOWN += ("token.temperature", "token.keep", "token.cap", "negate.scale")


def main(runs: str = "runs", page: str = "docs/methods.md") -> None:
    """Run what is missing and write the page."""
    from rayunlearn.planning.planner import Planner
    from rayunlearn.trial.identity import identify_trial
    from rayunlearn.trial.workspace import prepare_models, validate_trial

    experiment = load(__file__)
    folder, cache = Path(runs) / experiment.name / experiment.version, Path(runs) / "cache"
    rows = {
        row.trial_id: row.trial
        for row in Planner(experiment, validate_trial, identify_trial).agenda({}).rows
    }
    prepare_models(
        next(iter(rows.values())),
        cache,
        lambda role, done, steps: print(f"\r{role} {done}/{steps}", end="", file=sys.stderr),
    )
    run_missing(rows, folder, cache)
    run_missing(repeats(folder, rows), folder, cache)
    Path(page).write_text(written(folder, rows), encoding="utf-8")


def run_missing(rows: dict[str, Trial], folder: Path, cache: Path) -> None:
    """Run the trials that have not finished, each method in a fresh process: its peak memory is its
    own.
    """
    from concurrent.futures import ProcessPoolExecutor

    from rayunlearn.storage.run import finished_ids

    done = finished_ids(folder)
    groups: dict[str, list[Trial]] = {}
    for trial_id, trial in rows.items():
        if done.get(trial_id, "failed") == "failed":
            groups.setdefault(label(trial), []).append(trial)
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for name in pool.map(partial(run_group, folder=folder, cache=cache), groups.values()):
            print(name, file=sys.stderr)


def repeats(folder: Path, rows: dict[str, Trial]) -> dict[str, Trial]:
    """The trial that each label's line is about, with the other seeds, by trial id."""
    from rayunlearn.trial.identity import identify_trial
    from rayunlearn.trial.workspace import validate_trial

    lines = best_rows(folder, rows)
    trained = [rows[row["trial_id"]] for row in lines.values() if row["stage"] == "unlearned"]
    again = [
        validate_trial(with_values(trial, {"train.seed": seed}))
        for trial in trained
        for seed in SEEDS
    ]
    return {identify_trial(trial): trial for trial in again}


def run_group(trials: Sequence[Trial], folder: Path, cache: Path) -> str:
    """Run the trials one after another, on one thread; returns their label."""
    import torch

    from rayunlearn.trial.provenance import commit_of
    from rayunlearn.trial.run import run_trial
    from rayunlearn.trial.workspace import workspace_of

    torch.set_num_threads(1)
    for trial in trials:
        run_trial(
            trial,
            workspace_of(trial, cache),
            folder,
            "methods",
            "1",
            commit_of(Path(__file__).parent),
        )
    return label(trials[0])


def label(trial: Trial) -> str:
    """Stage or method, with every setting of SHOWN that is not the default's."""
    if trial.stage != "unlearned":
        return trial.stage
    flat, plain = flatten(trial), flatten(Trial())
    changed = [
        spoken(name, flat[name]) for name in SHOWN if name in flat and flat[name] != plain.get(name)
    ]
    return ", ".join(
        [trial.method.forget if trial.method.forget != "none" else "retain only", *changed]
    )


def spoken(name: str, value: Value) -> str:
    """`sam`, `retain_weight 8`: numbers with the name of their setting."""
    return f"{name.partition('.')[2]} {value:g}" if isinstance(value, float) else str(value)


def written(folder: Path, trials: dict[str, Trial]) -> str:
    """The page: the table of what was measured, then every method with its source and
    hyperparameters.
    """
    results, best = measured(folder), best_rows(folder, trials)
    others: dict[str, list[dict[str, Any]]] = {}
    for trial_id, trial in repeats(folder, trials).items():
        others.setdefault(label(trial), []).append(results[trial_id])
    order = sorted(best, key=lambda name: (name not in ("base", "gold"), name != "retain only"))
    lines = [line(name, best[name], others.get(name, [])) for name in order]
    base = best["base"]
    facts = {
        "floor": OBJECTIVE.utility_floor * base["retain"],
        "steps": int(BASE.train.length),
        "batch": BASE.train.batch_size,
    }
    facts["commits"] = ", ".join(sorted({row["commit"] for row in results.values()}))
    return PAGE.format(
        table="\n".join(lines),
        hardware=base["hardware"],
        packages=base["packages"],
        catalogue=catalogue(),
        **facts,
    )


def best_rows(folder: Path, trials: dict[str, Trial]) -> dict[str, dict[str, Any]]:
    """By label, the results of the trial that its line is about: `chosen` among the learning rates
    of seed 0.
    """
    results = measured(folder)
    floor = OBJECTIVE.utility_floor * next(
        results[i]["retain"] for i, t in trials.items() if t.stage == "base"
    )
    labels: dict[str, list[dict[str, Any]]] = {}
    for trial_id, trial in trials.items():
        labels.setdefault(label(trial), []).append(
            results[trial_id] | {"rate": trial.train.learning_rate, "stage": trial.stage}
        )
    return {name: chosen(rows, floor) for name, rows in labels.items()}


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Status, costs and metrics of every trial of the run, by trial id; what was not measured is
    None.
    """
    import polars as pl

    from rayunlearn.storage.run import open_run

    run = open_run(folder)
    names = {
        "forget.probability": "forget",
        "forget.multiple_choice": "choice",
        "retain.probability": "retain",
    }
    values = (
        run.evals.with_columns(name=pl.col("split") + "." + pl.col("metric"))
        .filter(pl.col("name").is_in(list(names)))
        .collect()
    )
    wide = values.pivot("name", index="trial_id", values="value").rename(names)
    seconds = (
        run.steps.filter(pl.col("step") > 2)
        .group_by("trial_id")
        .agg(pl.col("seconds").min())
        .collect()
    )
    costs = run.trials.select(
        "trial_id",
        "status",
        "commit",
        "hardware",
        "packages",
        memory="peak_memory_bytes",
        trained="parameters_trained",
    ).collect()
    joined = costs.join(wide, on="trial_id", how="left").join(seconds, on="trial_id", how="left")
    return {row["trial_id"]: row for row in joined.to_dicts()}


def chosen(rows: Iterable[dict[str, Any]], floor: float) -> dict[str, Any]:
    """Of the rates that keep utility at the floor the one that forgets most; where none does, the
    one that keeps most.
    """
    rows = list(rows)
    feasible = [r for r in rows if r["status"] == "complete" and r["retain"] >= floor]
    if feasible:
        return min(feasible, key=lambda r: r["forget"]) | {"feasible": True}
    return max(rows, key=lambda r: -1.0 if r["retain"] is None else r["retain"]) | {
        "feasible": False
    }


def line(name: str, row: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """One line of the table; `others` are the same trial with other seeds."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    def over_seeds(measure: str, form: str) -> str:
        values = [one[measure] for one in (row, *others) if one[measure] is not None]
        if len(values) < 2:
            return number(row[measure], form)
        return (
            f"{format(sum(values) / len(values), form)}"
            f" ({format(min(values), form)}-{format(max(values), form)})"
        )

    trained = row["stage"] == "unlearned"
    cells = [
        f"`{name}`",
        f"{row['rate']:g}" if trained else "",
        over_seeds("forget", ".3f"),
        over_seeds("choice", ".2f"),
        over_seeds("retain", ".3f")
        + ("" if row["feasible"] or not trained else " (under the floor)"),
        number(1000 * row["seconds"], ".0f") if row["seconds"] is not None else "",
        number(row["memory"] / 2**20, ".0f"),
        number(row["trained"], ",") if trained else "",
    ]
    return "| " + " | ".join(cells) + " |"


def catalogue() -> str:
    """Every member of the families as `rayunlearn list methods` prints it."""
    from io import StringIO

    from rich.console import Console

    from rayunlearn.cli.listing import print_methods

    text = StringIO()
    print_methods(Console(file=text, width=150, color_system=None))
    return text.getvalue().strip()


PAGE = """# Methods

What each method leaves and costs on one small dataset, then what there is. `rayunlearn list
methods` prints the second part, `rayunlearn list recipes` the settings of published runs.

## On the same dataset

Tiny domain dataset, full forget set, {steps} steps of {batch} documents. Of four learning rates
(3e-4 to 1e-2) the line shows the one with the lowest forget probability, with seed 0, among those
whose retain probability is at least {floor:.3f} (0.9 of base); "under the floor": no rate was, and
the line is the one that keeps most. That rate ran with seeds 1 and 2 too: mean over the three
(lowest-highest). The seed draws batches, companions and noise; base is one model. Everything else
is at its default: this says that a method works here and what it costs, not which is best. `forget`
and `retain`: mean probability of the right answers of questions that the forget loss never saw (it
sees documents). Milliseconds: the fastest step, one thread, on a machine that other work shared.
Memory: peak of a process of its own, metrics included.

| method | learning rate | forget | multiple choice | retain | ms/step | peak MiB \
| parameters trained |
|---|---|---|---|---|---|---|---|
{table}

Commit {commits}; {hardware}; {packages}.

## Numbers that changed

Commits before these changes give other numbers in these cases. The table above was measured before
the last two.

- `pdu` with `train.accumulation` above 1 or several processes: its dual weight moved at every piece
  (after one step of 8 documents 15.8, 30.6 or 60.3 for 2, 4 or 8 pieces on a model where the whole
  batch gives 8.41), on each process by its own documents. It moves once per optimizer step now, by
  the retain loss of the whole batch.
- `select.name=grand`: norms were looked at 13 or 14 times for 10 epochs of 10 documents, base twice
  at some batch sizes, a task vector after it had been subtracted, and refusals, alternates and
  random answers at temperature 1 whatever `token.temperature` said. It is base once and the end of
  every epoch once, of a run without warm-up.
- `select.name` `min_k`, `min_k_plus`: the token that ends a text counted, and does not in the
  metrics `min_k_score`, `min_k_plus_score`. It counts in neither now, so selector and metric are
  one number (the sign apart). `zlib` is the mean NLL per compressed byte, as `zlib_score`, where it
  was the sum.
- `--preset paper` on WMDP and MMLU: scored by `letter_choice`, not by the likelihood of options
  that the question does not show. `control`: RMU's target has the released code's length (52 for
  Phi-1.5, 74 for Llama-2, was 2) at block 20 (was 21).
- `simnpo` and `satimp` are above with weights of 1 and 8, and 1 and 10. They have the published
  pairs now, `method.forget_weight` 0.125 and 0.1 with `method.retain_weight` 1: the same ratio and
  a smaller gradient, so clipping at `train.max_grad_norm` cuts less of it.
- Batches follow the corpus' order, drawn by `train.seed`. They followed the selector's rank, so
  that two selectors with the same documents trained other batches.

## How far to steer

`rmu.steering` is an absolute length, as in the paper and its code (Li et al. 2403.03218: 6.5 for
Zephyr-7B at block 7, 300 for Mixtral). What it does depends on how long the activations are: 6.5
pulls activations of length 150 towards zero. `method.steering_unit=activation` counts in their own
lengths instead: `rmu.steering=2` is then twice the mean length, measured before the first step over
the label tokens of up to 32 forget and 32 retain texts, and written to the trial's column
`activation_length`, which every trial with such a loss has. `adaptive_rmu` (Dang et al. 2408.06223)
always counts so, with one length per token. For one mean length of both sides we know no source; it
is ours.

A trial whose training may have come to nothing says so in its column `note`, and the terminal and
the report list the notes: steering under a tenth or over ten times the activations' length, and a
forget loss whose mean over the last tenth of the steps is within 1% of that over the first.

## What there is

```
{catalogue}
```

Words: [glossary](glossary.md). Made by `python -m experiments.methods`.
"""

if __name__ == "__main__":
    if __spec__ is None:
        sys.exit(
            "run it as a module: python -m experiments.methods (as a file, Python finds"
            " experiments/selectors.py in place of its own selectors)"
        )
    main(*sys.argv[1:])
