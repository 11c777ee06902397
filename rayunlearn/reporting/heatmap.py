"""Heat maps of questions: what each token did for the answer, before unlearning and after. From
rows of `attributions` alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rayunlearn.analysis.attribution import attribution_cells
from rayunlearn.schema import RIGHT_METRIC
from rayunlearn.storage.run import Run

# questions on the page
MAX_MAPS = 4

# a token without visible text
EMPTY_TOKEN = "·"


@dataclass(frozen=True)
class HeatMapToken:
    """A token, its contribution in nats, the same as a share of the line's largest (from -1 to 1),
    and whether it is a key token.
    """

    text: str
    contribution: float
    share: float
    is_key: bool

    @property
    def colour(self) -> str:
        """From white at 0 to blue at 1 and orange at -1, the two that all eyes tell apart, light
        enough to read black on them: `rgb(86,180,233)`.
        """
        full = (86, 180, 233) if self.share > 0 else (230, 159, 0)
        strength = min(1.0, abs(self.share))
        red, green, blue = (round(255 + (to - 255) * strength) for to in full)
        return f"rgb({red},{green},{blue})"


@dataclass(frozen=True)
class HeatMapLine:
    """One question as one model goes by it: the model's name, how it answers, the tokens."""

    name: str
    answer: str
    tokens: tuple[HeatMapToken, ...]


@dataclass(frozen=True)
class HeatMap:
    """One question through several models."""

    doc_id: str
    split: str
    lines: tuple[HeatMapLine, ...]


def line_of(name: str, answer: str, rows: pl.DataFrame) -> HeatMapLine:
    """A line from rows of `attributions` of one question, model and unit. Shares are of the largest
    |contribution| of this line.
    """
    ordered = rows.sort("position")
    largest = float(ordered["contribution"].abs().max() or 0.0) or 1.0  # type: ignore[arg-type]
    tokens = [
        HeatMapToken(text.strip() or EMPTY_TOKEN, value, value / largest, is_key)
        for text, value, is_key in ordered.select("token", "contribution", "is_key").iter_rows()
    ]
    return HeatMapLine(name, answer, tuple(tokens))


def maps_of(
    run: Run,
    documents: Iterable[tuple[str, str]],
    trials: Sequence[tuple[str, str]],
    *,
    unit: str = "token",
) -> list[HeatMap]:
    """A heat map per (split, doc_id) of `wanted`, a line per (trial, name) that was asked it. One
    without lines is left out.
    """
    rows = run.attributions.filter(
        pl.col("unit") == unit, pl.col("trial_id").is_in([t for t, _ in trials])
    ).collect()
    parts = {
        (str(t), str(s), str(d)): part
        for (t, s, d), part in rows.group_by("trial_id", "split", "doc_id")
    }
    answers = answers_of(run, [t for t, _ in trials])
    maps = []
    for split, doc in documents:
        lines = [
            line_of(name, answers.get((t, split, doc), ""), parts[t, split, doc])
            for t, name in trials
            if (t, split, doc) in parts
        ]
        maps += [HeatMap(doc, split, tuple(lines))] if lines else []
    return maps


def pair_map(
    doc_id: str, split: str, before: pl.DataFrame, after: pl.DataFrame, *, unit: str = "token"
) -> HeatMap:
    """One question before and after, from rows of `attributions` of one model each."""
    lines = [
        line_of(name, "", rows.filter(pl.col("unit") == unit))
        for name, rows in (("before (base)", before), ("after", after))
    ]
    return HeatMap(doc_id, split, tuple(lines))


def page_maps(run: Run) -> list[HeatMap]:
    """The first forget questions that base answers right, in the order of their ids, through base,
    gold and the first seed of each cell.
    """
    cells = [cell for cell in attribution_cells(run) if cell.role != "control"]
    bases = dict.fromkeys(cell.base for cell in cells)
    maps: list[HeatMap] = []
    for base in bases:
        right = sorted(
            d
            for (t, s, d), answer in answers_of(run, [base]).items()
            if s == "forget" and answer.endswith(", right")
        )
        trials = [(cell.trial_ids[0], cell.name) for cell in cells if cell.base == base]
        maps += maps_of(run, [("forget", d) for d in right[:MAX_MAPS]], trials)
    return maps


def trial_maps(run: Run, trial_id: str, document: str) -> list[HeatMap]:
    """Before (base) and after of one trial; `wanted` is a doc_id, the beginning of one, or '' for
    the page's questions.

    Empty where the run has no attributions of the trial, of its base or of that question.
    """
    cell = next((cell for cell in attribution_cells(run) if trial_id in cell.trial_ids), None)
    if cell is None:
        return []
    trials = [(cell.base, "before (base)")] + (
        [] if trial_id == cell.base else [(trial_id, f"after ({cell.name})")]
    )
    questions = (
        run.attributions.filter(pl.col("trial_id") == trial_id)
        .select("split", "doc_id")
        .unique(maintain_order=True)
        .collect()
    )
    pairs = sorted((str(split), str(doc)) for split, doc in questions.iter_rows())
    if not document:
        return maps_of(run, [pair for pair in pairs if pair[0] == "forget"][:MAX_MAPS], trials)
    return maps_of(run, [pair for pair in pairs if pair[1].startswith(document)], trials)


def answers_of(run: Run, trial_ids: Sequence[str]) -> dict[tuple[str, str, str], str]:
    """(trial, split, document) -> `probability 0.98, right`, of the model that the trial is about,
    unattacked.
    """
    stages = run.trials.select("trial_id", pl.col("stage").alias("_own"))
    answer_rows = (
        (pl.col("metric").is_in(["probability", RIGHT_METRIC]))
        & (pl.col("attack") == "none")
        & pl.col("trial_id").is_in(list(trial_ids))
    )
    rows = (
        run.examples.filter(answer_rows)
        .join(stages, on="trial_id")
        .filter(pl.col("stage") == pl.col("_own"))
        .collect()
    )
    answers: dict[tuple[str, str, str], dict[str, float]] = {}
    for trial, split, doc, metric, value in (
        rows.select("trial_id", "split", "doc_id", "metric", "value").drop_nulls().iter_rows()
    ):
        answers.setdefault((trial, split, doc), {})[metric] = value
    return {pair: format_answer(values) for pair, values in answers.items()}


def format_answer(values: Mapping[str, Any]) -> str:
    """`probability 0.98, right`: right where the greedy text is the answer."""
    parts = [f"probability {values['probability']:.2f}"] if "probability" in values else []
    return ", ".join(
        [
            *parts,
            *(
                ["right" if values[RIGHT_METRIC] == 1 else "wrong"]
                if RIGHT_METRIC in values
                else []
            ),
        ]
    )
