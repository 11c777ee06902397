"""The table of chosen retain documents beside as many drawn at random."""

import polars as pl

from rayunlearn.analysis.labels import format_difference, format_number
from rayunlearn.analysis.retain_choice import retain_table
from rayunlearn.reporting.tables import Section, TableView
from rayunlearn.storage.run import Run

SIGNIFICANT = 0.05
RETAIN_COLUMNS = {
    "role": "grid: the forget loss too; control: the retain loss alone",
    "retain documents": "selector of the retain documents, and the share of general text",
    "measure": "forgetting and utility as the objective has them, and utility on untouched",
    "ratio": "share of the retain set that trains",
    "value": "mean over seeds and documents",
    "random": "the same of as many retain documents drawn at random",
    "difference": "mean over pairs of the same seed, with its 95% interval",
    "p": "after Holm's correction over all rows of the role",
}


def retain_sections(run: Run) -> list[Section]:
    """The table of `retain_table`; none where no retain documents were chosen."""
    table = retain_table(run)
    if table.is_empty():
        return []
    several = table["setting"].n_unique() > 1
    names = ("where", *RETAIN_COLUMNS) if several else tuple(RETAIN_COLUMNS)
    meanings = ("what else varies", *RETAIN_COLUMNS.values())
    rows = [
        (
            *((row["setting"],) if several else ()),
            row["role"],
            row["arm"],
            row["measure"],
            format_number(row["ratio"]),
            format_number(row["value"]),
            format_number(row["value_random"]),
            format_difference(row),
            format_number(row["p_holm"]),
        )
        for row in table.iter_rows(named=True)
    ]
    words = {"where", "role", "retain documents", "measure"}
    view = TableView(
        headers=names,
        meanings=meanings[-len(names) :],
        rows=tuple(rows),
        roles=tuple(table["role"]),
        numeric=tuple(name not in words for name in names),
    )
    caption = " ".join(retain_sentences(table))
    title = "Does choosing the retain documents pay?"
    return [Section(anchor="retain-choice", title=title, caption=caption, view=view)]


def retain_sentences(table: pl.DataFrame) -> list[str]:
    """Per setting of `retain_table`: which arms of the grid keep more or less than random retain
    documents, and how many are not significantly different.

    Example:
        >>> from rayunlearn.analysis.retain_choice import RETAIN_SCHEMA
        >>> retain_sentences(pl.DataFrame(schema=RETAIN_SCHEMA))
        []
    """
    sentences = []
    for (setting,), rows in table.filter(role="grid").group_by(["setting"], maintain_order=True):
        where = f"With {setting}: " if table["setting"].n_unique() > 1 and setting else ""
        for (measure,), arms in rows.group_by(["measure"], maintain_order=True):
            significant = arms.filter(pl.col("p_holm") < SIGNIFICANT)
            words = [
                f"{row['arm']} {format_difference(row)}"
                for row in significant.sort("difference", descending=True).iter_rows(named=True)
            ]
            rest = arms.height - significant.height
            sentences.append(
                f"{where}{measure}, less that of as many random retain documents:"
                f" {', '.join(words) if words else 'no selector differs significantly'}"
                + (f"; {rest} others do not differ significantly." if words and rest else ".")
            )
    return sentences
