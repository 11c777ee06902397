"""What words say of forgetting, from Parquet alone: recovery by emphasis, what was destroyed, key
tokens before and after.

`right` means that every token of the answer, its end too, is the model's greedy choice
(`exact_memorization` 1): the greedy text is the answer. Where the experiment's objective is the key
word (`key_probability`, the default on a model that was not trained on the answers), it means that
this is at least one half: no other words together are more probable, however the model would begin
the sentence. The paper (unPact, 2509.24675) asks a chat model; its formulas of both
rates are not confirmed, these are ours.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import Interval, Numbers, interval_columns, mean_interval
from rayunlearn.analysis.labels import control_label, format_cell, format_coreset_size
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    groups_of,
    objective_of,
    trials_with_roles,
    varying_settings,
)
from rayunlearn.analysis.two_way import group_codes
from rayunlearn.lazy import scipy
from rayunlearn.schema import KEY_METRIC, RIGHT_METRIC, WORD_KINDS
from rayunlearn.storage.run import Run

KEY, RANDOM = "emphasis", "emphasis_random"
STAGES_OF_INTEREST = ("base", "gold", "control", "grid")

# an answer is right from here on: every token of it greedy; or the key more probable than the rest
ALL_RIGHT, KEY_IS_RIGHT = 1.0, 0.5
# ranges
FRACTION, CORRELATION = (0.0, 1.0), (-1.0, 1.0)


@dataclass(frozen=True)
class AttributionCell:
    """Trials that differ in their seeds alone, and the base trial that they are held against."""

    name: str
    role: str
    trial_ids: tuple[str, ...]
    base: str


def attribution_cells(run: Run) -> list[AttributionCell]:
    """`cells_of_trials` of the trials that have attributions."""
    return cells_of_trials(run, run.attributions.select("trial_id").unique().collect())


def cells_of_trials(run: Run, explained: pl.DataFrame) -> list[AttributionCell]:
    """Base, gold, controls and grid of these trials (column trial_id), as the coreset table has
    them; a cell without its base is left out.
    """
    if not explained.height:
        return []
    placed = (
        trials_with_roles(run)
        .filter(pl.col("role") != "tuning")
        .join(explained, on="trial_id", how="semi")
    )
    settings = varying_settings(run, placed)
    bases = {
        cell_settings(row): row["trial_id"]
        for row in placed.filter(pl.col("role") == "base").iter_rows(named=True)
    }
    groups = _rows_of_cells(placed, settings, bases)
    parts = len({rows[0]["said"].get("select.ratio") for rows in groups} - {None}) > 1
    cells = [
        AttributionCell(
            _name(rows[0], settings, parts=parts),
            rows[0]["role"],
            tuple(dict.fromkeys(r["trial_id"] for r in rows)),
            bases[cell_settings(rows[0])],
        )
        for rows in groups
    ]
    return sorted(cells, key=lambda c: STAGES_OF_INTEREST.index(c.role))


def _rows_of_cells(
    placed: pl.DataFrame, settings: Sequence[str], bases: Collection[tuple[Any, ...]]
) -> list[list[dict[str, Any]]]:
    """Rows of trials that differ in their seeds alone, the full set first; `said` is what the
    cell's name says of them.
    """
    ordered = placed.sort(
        ["method.forget", "method.retain", "select.ratio"],
        descending=[False, False, True],
        maintain_order=True,
    ).unique(["trial_id", "role", "group"], maintain_order=True)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in ordered.iter_rows(named=True):
        columns = _cell_columns(row, settings)
        if cell_settings(row) in bases:
            key = (row["role"], cell_settings(row), *columns.values())
            groups.setdefault(key, []).append(row | {"said": columns})
    return list(groups.values())


def cell_settings(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a trial shares with the base trial that it is held against."""
    return (row["corpus_digest"], row["model_digest"])


def emphasis_table(run: Run) -> pl.DataFrame:
    """One row per cell and form of emphasis.

    forgotten: questions that base answers right and the cell's model does not, mean over seeds; for
    base itself, questions it answers right. recovered: share of them that are right when key words
    are pointed out; random: when as many others are;
    net: the paired difference. harmed: share of the retain questions that the cell's model answers
    right as asked and wrong when their key words are pointed out. Each with _low and _high, 95% t
    over seeds and questions.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table; no rows where `explain.documents` asked for nothing.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = emphasis_table(open_run("runs/explained/1"))
        >>> table.filter(cell="npo + nll, full set").select("forgotten", "recovered").row(0)
        (2.0, 0.5)
    """
    right, group_of = _right_answers(run), groups_of(run)
    rows = [
        _emphasis_row(cell, form, right, group_of)
        for cell in attribution_cells(run)
        for form in _forms(run)
    ]
    return pl.DataFrame([row for row in rows if row["forgotten"]], infer_schema_length=None)


def damage_table(run: Run) -> pl.DataFrame:
    """One row per cell but base: destroyed (share of retain questions right before and wrong now),
    the same of `untouched`, and the change of mean log p of function words, keywords and all but
    function words of the forget and the retain documents, in nats;
    against_keywords: that of function words minus that of keywords, document by document. Each with
    its interval.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table; no rows where `explain.documents` asked for nothing.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = damage_table(open_run("runs/explained/1"))
        >>> row = table.row(by_predicate=pl.col("cell") == "npo + nll, full set", named=True)
        >>> print(f"{row['destroyed']:.2f}")
        0.33
    """
    right, words = _right_answers(run), _values(run, WORD_KINDS)
    group_of, cells = groups_of(run), attribution_cells(run)
    return pl.DataFrame(
        [_damage_row(cell, right, words, group_of) for cell in cells if cell.role != "base"],
        infer_schema_length=None,
    )


def tracking_table(run: Run, *, split: str = "forget") -> pl.DataFrame:
    """One row per cell: how much of what base's answers hung on is left, means over questions and
    seeds with intervals.

    overlap: Jaccard of the key tokens before and after; kept: share of base's key tokens that are
    still key; mass: share of the positive contributions that lies on base's key tokens (before it
    is near 1); rank: Spearman correlation of the contributions;
    gradient: Spearman correlation of contributions with integrated gradients in the same model.

    Args:
        run: an opened run (`storage.run.open_run`).
        split: whose questions count.

    Returns:
        The table; no rows where `explain.documents` asked for nothing.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = tracking_table(open_run("runs/explained/1"))
        >>> row = table.row(by_predicate=pl.col("cell") == "npo + nll, full set", named=True)
        >>> print(f"{row['overlap']:.2f} {row['kept']:.2f}")
        0.33 0.50
    """
    frames, group_of = attribution_frames(run, split), groups_of(run)
    return pl.DataFrame(
        [_tracking_row(cell, frames, group_of) for cell in attribution_cells(run)],
        infer_schema_length=None,
    )


def attribution_frames(run: Run, split: str) -> dict[str, dict[str, pl.DataFrame]]:
    """trial -> question -> its tokens in order."""
    rows = (
        run.attributions.filter(pl.col("unit") == "token", pl.col("split") == split)
        .sort("position")
        .collect()
    )
    frames: dict[str, dict[str, pl.DataFrame]] = {}
    for (trial, doc), frame in rows.group_by("trial_id", "doc_id", maintain_order=True):
        frames.setdefault(str(trial), {})[str(doc)] = frame
    return frames


def attribution_tracking(before: pl.DataFrame, after: pl.DataFrame) -> dict[str, float]:
    """The five numbers of `tracking_table` for one question;
    NaN where one has nothing to speak of.
    """
    key, now = before["is_key"].to_numpy(), after["is_key"].to_numpy()
    contribution = after["contribution"].to_numpy()
    positive = np.maximum(contribution, 0)
    gradient = after["gradient"].to_numpy() if after["gradient"].null_count() == 0 else None
    return {
        "overlap": fraction(key & now, key | now),
        "kept": fraction(key & now, key),
        "mass": float(positive[key].sum() / positive.sum()) if positive.sum() > 0 else float("nan"),
        "rank": rank_correlation(before["contribution"].to_numpy(), contribution),
        "gradient": float("nan") if gradient is None else rank_correlation(contribution, gradient),
    }


def fraction(part: np.ndarray[Any, Any], total: np.ndarray[Any, Any]) -> float:
    """|part| / |whole|; NaN where the whole is empty."""
    return float(part.sum() / total.sum()) if total.any() else float("nan")


def rank_correlation(x: Numbers, y: Numbers) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing theirs; NaN where one does not vary."""
    a, b = scipy.stats.rankdata(x) - (len(x) + 1) / 2, scipy.stats.rankdata(y) - (len(y) + 1) / 2
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


TRACKED_METRICS = {
    "overlap": "Jaccard of the key tokens of base and of this model",
    "kept": "share of base's key tokens that are key tokens here",
    "mass": "share of the positive contributions that lies on base's key tokens",
    "rank": "Spearman correlation of the contributions here with base's",
    "gradient": (
        "Spearman correlation of the contributions here with integrated gradients in the same model"
    ),
}

TRACKED_RANGE = {
    name: CORRELATION if name in ("rank", "gradient") else FRACTION for name in TRACKED_METRICS
}


def value_matrix(
    trial_ids: Sequence[str], documents: Sequence[str], values: Mapping[tuple[str, str], float]
) -> Numbers:
    """(trials, documents), NaN where there is none."""
    cells = [[values.get((t, d), float("nan")) for d in documents] for t in trial_ids]
    return np.array(cells, dtype=np.float64).reshape(len(trial_ids), len(documents))


def interval_of(
    trial_ids: Sequence[str],
    documents: Sequence[str],
    values: Mapping[tuple[str, str], float],
    group_of: Mapping[str, str],
    *,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Mean and interval of the values of (trial, document), documents of one group drawn
    together.
    """
    return mean_interval(
        value_matrix(trial_ids, documents, values),
        groups=group_codes(documents, group_of),
        bounds=bounds,
    )


# (attack, split), or (metric, split) -> (trial, document) -> value
Values = dict[tuple[str, str], dict[tuple[str, str], float]]


def _values(run: Run, metrics: Sequence[str], by: str = "metric") -> Values:
    stages = run.trials.select("trial_id", pl.col("stage").alias("_own"))
    rows = (
        run.examples.filter(pl.col("metric").is_in(list(metrics)))
        .join(stages, on="trial_id")
        .filter(pl.col("stage") == pl.col("_own"))
    )
    values_by_document: Values = {}
    for key, split, trial, doc, value in (
        rows.select(by, "split", "trial_id", "doc_id", "value").drop_nulls().collect().iter_rows()
    ):
        values_by_document.setdefault((key, split), {})[trial, doc] = value
    return values_by_document


def goes_by_key(run: Run) -> bool:
    """Whether an answer counts as right by its key word, as the objective does.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> goes_by_key(open_run("docs/notebooks/runs/coreset"))
        False
    """
    return objective_of(run.experiment).forgetting == KEY_METRIC


def _right_answers(run: Run) -> Values:
    """(attack, split) -> (trial, document) -> 1 where the answer is right, 0 where it is wrong."""
    metric, bound = (KEY_METRIC, KEY_IS_RIGHT) if goes_by_key(run) else (RIGHT_METRIC, ALL_RIGHT)
    return {
        attack_and_split: {key: float(value >= bound) for key, value in values.items()}
        for attack_and_split, values in _values(run, (metric,), by="attack").items()
    }


def _forms(run: Run) -> list[str]:
    attacks = run.examples.select("attack").unique().collect()["attack"].to_list()
    return sorted(name.partition(":")[2] for name in attacks if name.startswith(f"{KEY}:"))


def _answered_right(plain: Mapping[tuple[str, str], float], base: str) -> list[str]:
    """Questions that the base trial answers right."""
    return sorted(d for t, d in plain if t == base and plain[t, d] == 1)


def _emphasis_row(
    cell: AttributionCell, form: str, right: Values, group_of: Mapping[str, str]
) -> dict[str, Any]:
    documents = _answered_right(right.get(("none", "forget"), {}), cell.base)
    key, other = _emphasised(cell, form, right, documents)
    row: dict[str, Any] = {
        "cell": cell.name,
        "role": cell.role,
        "form": form,
        "seeds": len(cell.trial_ids),
        "forgotten": len(key) / len(cell.trial_ids),
    }
    net = {k: key[k] - other[k] for k in key}
    harmed = _harmed(cell, form, right)
    retained = sorted({d for _, d in harmed})
    for name, documents_asked, values, bounds in (
        ("recovered", documents, key, FRACTION),
        ("random", documents, other, FRACTION),
        ("net", documents, net, None),
        ("harmed", retained, harmed, FRACTION),
    ):
        row |= interval_columns(
            name, interval_of(cell.trial_ids, documents_asked, values, group_of, bounds=bounds)
        )
    return row


def _emphasised(
    cell: AttributionCell, form: str, right: Values, documents: Sequence[str]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """(trial, question) -> 1 where a question that the cell's model lost is right with its key
    words pointed out, 0 where wrong; and the same with the same number of other words.
    """
    plain = right.get(("none", "forget"), {})
    emphasised = [right.get((f"{kind}:{form}", "forget"), {}) for kind in (KEY, RANDOM)]
    lost = {
        (t, d)
        for t in cell.trial_ids
        for d in documents
        if cell.role == "base" or plain.get((t, d)) != 1
    }
    asked_both = {k for k in lost if all(k in values for values in emphasised)}
    key, other = ({k: float(values[k] == 1) for k in asked_both} for values in emphasised)
    return key, other


def _harmed(cell: AttributionCell, form: str, right: Values) -> dict[tuple[str, str], float]:
    """(trial, retain question) -> 1 where the emphasised question is answered wrong, 0 where right;
    none where it was wrong as asked.
    """
    plain, emphasised = (
        right.get(("none", "retain"), {}),
        right.get((f"{KEY}:{form}", "retain"), {}),
    )
    return {
        k: float(value != 1)
        for k, value in emphasised.items()
        if plain.get(k) == 1 and k[0] in cell.trial_ids
    }


def _damage_row(
    cell: AttributionCell, right: Values, words: Values, group_of: Mapping[str, str]
) -> dict[str, Any]:
    row: dict[str, Any] = {"cell": cell.name, "role": cell.role, "seeds": len(cell.trial_ids)}
    for name, split in (("destroyed", "retain"), ("destroyed_untouched", "untouched")):
        plain = right.get(("none", split), {})
        documents = _answered_right(plain, cell.base)
        values = {
            (t, d): float(plain[t, d] != 1)
            for t in cell.trial_ids
            for d in documents
            if (t, d) in plain
        }
        row |= interval_columns(
            name, interval_of(cell.trial_ids, documents, values, group_of, bounds=FRACTION)
        )
    for side in ("forget", "retain"):
        changes = [
            _change(cell, words.get((metric, f"{side}_documents"), {})) for metric in WORD_KINDS
        ]
        function, keyword, content = changes
        against = {key: function[key] - keyword[key] for key in function if key in keyword}
        named = {
            "function_words": function,
            "keywords": keyword,
            "against_keywords": against,
            "content_words": content,
        }
        for name, values in named.items():
            documents = sorted({d for _, d in values})
            row |= interval_columns(
                f"{name}_{side}", interval_of(cell.trial_ids, documents, values, group_of)
            )
    return row


def _change(
    cell: AttributionCell, now: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """(trial, document) -> value less that of base, where both have one."""
    return {
        (t, d): value - now[cell.base, d]
        for (t, d), value in now.items()
        if t in cell.trial_ids and (cell.base, d) in now
    }


def _tracking_row(
    cell: AttributionCell,
    frames: Mapping[str, Mapping[str, pl.DataFrame]],
    group_of: Mapping[str, str],
) -> dict[str, Any]:
    before = frames.get(cell.base, {})
    numbers = {
        (t, d): attribution_tracking(before[d], frames[t][d])
        for t in cell.trial_ids
        for d in before
        if d in frames.get(t, {})
    }
    row: dict[str, Any] = {"cell": cell.name, "role": cell.role, "seeds": len(cell.trial_ids)}
    for name in TRACKED_METRICS:
        values = {k: v[name] for k, v in numbers.items()}
        row |= interval_columns(
            name,
            interval_of(
                cell.trial_ids, sorted(before), values, group_of, bounds=TRACKED_RANGE[name]
            ),
        )
    return row


def _cell_columns(row: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """What tells a trial's cell from others: nothing of base and gold but data and model, no
    selector of a control.
    """
    trained = row["role"] in ("control", "grid")
    names = {"control": ("method.retain", "group"), "grid": CELL_SETTINGS}.get(row["role"], ())
    listed = [n for n in settings if trained or n.startswith(CONTEXT_SECTIONS)]
    # every selector shares the full set
    is_full = row["role"] == "grid" and row["select.ratio"] == 1
    return {n: None if n == "select.name" and is_full else row[n] for n in (*names, *listed)}


def _name(row: Mapping[str, Any], settings: list[str], *, parts: bool) -> str:
    """`npo + nll, random 25%`, `control: nll (npo)`, or the role; `parts`: whether there are
    several ratios to tell apart.
    """
    forget, retain = row["method.forget"], row["method.retain"]
    group = control_label(row["group"], without=[*settings, "method.retain"])
    labels = {
        "grid": forget if retain == "none" else f"{forget} + {retain}",
        "control": f"control: {retain}{f' ({group})' if group else ''}",
    }
    part = (
        format_coreset_size(row["select.name"], row["select.ratio"])
        if parts and row["role"] == "grid"
        else ""
    )
    return ", ".join(
        filter(
            None,
            [
                labels.get(row["role"], row["role"]),
                part,
                format_cell({n: row["said"].get(n) for n in settings}, settings),
            ],
        )
    )
