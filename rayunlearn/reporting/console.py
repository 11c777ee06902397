"""The same table and the same words on a terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayunlearn.analysis.baselines import baseline_table
from rayunlearn.analysis.coreset_table import extra_settings
from rayunlearn.analysis.equal_retention import has_calibrated
from rayunlearn.analysis.labels import (
    UNKNOWN,
    format_coreset_size,
    format_mean,
    format_number,
)
from rayunlearn.analysis.run_frames import objective_of, trial_table
from rayunlearn.analysis.targets import OVER_FORGOTTEN
from rayunlearn.analysis.trial_choice import (
    BEST,
    SHORT_ID,
    best_trials,
    chosen_trial,
    short_ids,
)
from rayunlearn.config import FULL_RATIO
from rayunlearn.errors import require
from rayunlearn.reporting.attack_tables import AttackMatrix, attack_tables
from rayunlearn.reporting.attribution_tables import attribution_sections
from rayunlearn.reporting.connectivity_tables import connectivity_sections
from rayunlearn.reporting.heatmap import HeatMap, HeatMapLine
from rayunlearn.reporting.probe_set_tables import probe_set_sections
from rayunlearn.reporting.retain_tables import retain_sections
from rayunlearn.reporting.robustness_tables import faithfulness_sections, robustness_sections
from rayunlearn.reporting.sentences import status_lines, warning_sentences
from rayunlearn.reporting.tables import (
    Section,
    TableView,
    baseline_sentences,
    baseline_view,
    coreset_view,
    over_forgotten_sentence,
    ranking_sentences,
    ranking_view,
)
from rayunlearn.reporting.terminal_tables import (
    GAP,
    column_widths,
    empty_table,
    least_widths,
    print_fitting,
)
from rayunlearn.reporting.text_tables import comparisons_of
from rayunlearn.schema import column_names
from rayunlearn.storage.run import Run, open_run

# Beginnings of the headers that a narrow terminal goes without, in this order.
COLUMNS_DROPPED_FIRST = (
    "tuned",
    "documents seen",
    "steps",
    "choice retain",
    "choice forget",
    "seeds",
    "coverage",
    "status",
    "distance",
    "unlearned",
    "untouched",
)
# beginnings of the headers that no terminal goes without
HEADLINE = ("unlearned", "untouched")


def print_coreset_table(
    table: pl.DataFrame, console: Console, *, experiment: Mapping[str, Any] | None = None
) -> None:
    """Print the coreset table; where the terminal is narrow, what was unlearned and what that cost
    elsewhere in a table of its own, and without the columns in `COLUMNS_DROPPED_FIRST`, and it says
    which.
    """
    view = coreset_view(table, experiment or {})
    named_by = 3 + len(extra_settings(table))
    parts = _fitting_parts(view, console.width, named_by)
    printed = {i for part in parts for i in part}
    left_out = [header for i, header in enumerate(view.headers) if i not in printed]
    caption = "[low, high] 95% t interval over seeds and documents" + (
        f"; too narrow for: {', '.join(left_out)}" if left_out else ""
    )
    for number, columns in enumerate(parts):
        is_last = number == len(parts) - 1
        console.print(_coreset_part(view, columns, caption if is_last else ""))
        if not is_last:
            console.print()
    for line in over_forgotten_sentence(table):
        console.print(line, highlight=False, soft_wrap=True)


def _coreset_part(view: TableView, columns: Sequence[int], caption: str) -> Table:
    """Some columns of the coreset table, a rule between methods."""
    printed = empty_table(view.headers, columns, view.numeric, caption=caption)
    for row, before, role in zip(view.rows, ((), *view.rows), view.roles, strict=False):
        if before and before[0] != row[0] and role == "grid":
            printed.add_section()
        printed.add_row(*(Text(row[i]) for i in columns), style="" if role == "grid" else "dim")
    return printed


def print_warnings(run: Run, table: pl.DataFrame, console: Console) -> None:
    """Print why the numbers of a run may mean nothing, a line each; nothing where nothing is
    wrong.
    """
    for sentence in warning_sentences(run, table):
        console.print(
            Text(f"warning: {sentence}", style="bold yellow"), highlight=False, soft_wrap=True
        )


def print_ranking(run: Run, console: Console) -> None:
    """Print the order of the methods as trained and at equal retention, where the run has
    calibrated trials.
    """
    if not has_calibrated(run):
        return
    headers, rows = ranking_view(run)
    _print_titled("At equal retention", headers, rows, ranking_sentences(run), console)


def print_probe_sets(run: Run, console: Console) -> None:
    """Print what was measured on probe sets beside those of the coreset table, where there are."""
    for section in probe_set_sections(run):
        print_section(section, console)


def print_baselines(run: Run, console: Console) -> None:
    """Print selectors and texts compared with random ones, where the run has both."""
    table = baseline_table(run)
    if table.is_empty():
        return
    headers, rows = baseline_view(table)
    _print_titled(
        "Compared with random selection", headers, rows, baseline_sentences(table), console
    )


def _print_titled(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[str],
    console: Console,
) -> None:
    numeric = [i > 0 for i in range(len(headers))]
    print_fitting(console, headers, rows, numeric=numeric, title=title)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def print_attack_matrices(run: Run, console: Console, *, metric: str = "") -> None:
    """Print the matrix of attacks and the recovery curves in numbers; nothing where no attack has
    ended.
    """
    for matrix in attack_tables(run, metric=metric):
        _print_matrix(matrix, console)


def _print_matrix(matrix: AttackMatrix, console: Console) -> None:
    numeric = [i > 0 for i in range(len(matrix.headers))]
    print_fitting(console, matrix.headers, matrix.rows, numeric=numeric, caption=matrix.caption)
    for note in matrix.notes:
        console.print(note, highlight=False, soft_wrap=True)


def print_attribution(run: Run, console: Console) -> None:
    """Print what trials explain: emphasis, destruction, key tokens, paths; nothing where they
    explain nothing.
    """
    for section in (*attribution_sections(run), *connectivity_sections(run)):
        print_section(section, console)


def print_robustness(run: Run, console: Console) -> None:
    """Print what each metric is worth: how well it tells base from gold, and its correlation and
    slope before and after attacks, where there are models enough.
    """
    for section in (*faithfulness_sections(run), *robustness_sections(run)):
        print_section(section, console)


def print_retain_choice(run: Run, console: Console) -> None:
    """Print chosen retain documents beside as many random ones; nothing where all of them train."""
    for section in retain_sections(run):
        print_section(section, console)


def print_section(section: Section, console: Console) -> None:
    """Print a titled table; a name that repeats is printed once."""
    view = section.view
    print_fitting(
        console,
        view.headers,
        view.rows,
        numeric=view.numeric,
        title=section.title,
        caption=section.caption,
        named_once=True,
    )


def print_heat_map(heat: HeatMap, console: Console) -> None:
    """Print a question as every model goes by it: blue supports the answer, orange speaks against
    it, `*` is a key token.

    The number behind a token is its contribution in nats, so that nothing is lost where there are
    no colours.
    """
    console.print(f"question {heat.doc_id} ({heat.split})", style="bold", highlight=False)
    for line in heat.lines:
        console.print(
            Text(f"{line.name}: {line.answer}" if line.answer else line.name, style="dim")
        )
        console.print(heat_text(line))


def heat_text(line: HeatMapLine) -> Text:
    """The tokens of a line, each on its colour, with its contribution."""
    text = Text("  ")
    for token in line.tokens:
        text.append(f" {token.text} ", style=f"black on {token.colour}")
        text.append(
            f"{token.contribution:+.2f}{'*' if token.is_key else ''} ",
            style="bold" if token.is_key else "dim",
        )
    return text


def summary_lines(run: Run | Path) -> list[str]:
    """Done, failed and why, documents rejected: a line each."""
    return status_lines(run if isinstance(run, Run) else open_run(run).in_memory())


def print_texts(run: Path, trial_id: str, n_documents: int, console: Console) -> None:
    """Print what the model of a trial wrote, base and gold beside it, for the documents that
    changed most, `n_documents` of the forget set and as many of the others. Also of a private
    corpus: what is printed here leaves the machine by nobody's hand but the reader's.

    Raises UserError as `print_trial` does, and where the run has no texts of the trial.
    """
    opened = open_run(run).in_memory()
    full_id = chosen_trial(opened, trial_id)
    comparisons = comparisons_of(
        opened, full_id, full_id, n_forget=n_documents, n_other=n_documents
    )
    rule = (
        "--texts needs a metric of texts in measure.metrics (rouge_l_recall, ...) and"
        " measure.keep_texts above 0; texts of this trial"
    )
    require(bool(comparisons), rule, len(comparisons))
    for comparison in comparisons:
        console.print(Text(f"{comparison.title} {comparison.doc_id}", style="bold"))
        for name, text in (("prompt", comparison.prompt), ("reference", comparison.reference)):
            _print_text(console, name, text)
        for written in comparison.texts:
            note = f"{written.model} ({written.note})" if written.note else written.model
            _print_text(console, note, written.text)
        console.print("")


def printable(text: str) -> str:
    """A text with a mark for every character that would steer a terminal: what a model writes may
    hold any.

    Args:
        text: any text.

    Returns:
        The same text; line breaks and tabs are left.

    Example:
        >>> printable("a\\x1b[2J")
        'a\ufffd[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _print_text(console: Console, name: str, text: str) -> None:
    """A name and a text, whose control characters do nothing to the terminal."""
    console.print(Text(f"  {name}: ", style="dim").append(printable(text), style="not dim"))


def print_trials(run: Path, console: Console) -> None:
    """Print the trials of a run, a line each in the order of the plan, under ids that are as short
    as they can be; the best one is marked.
    """
    opened = open_run(run).in_memory()
    table = trial_table(opened).unique(["trial_id", "role"], keep="first", maintain_order=True)
    names = short_ids(opened.trials.select("trial_id").collect()["trial_id"].to_list())
    best_ids = best_trials(opened, trial_table(opened))["trial_id"].to_list()[:1]
    printed = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for header in TRIAL_HEADERS:
        printed.add_column(header, justify="right" if header in TRIAL_NUMBERS else "left")
    for row in table.iter_rows(named=True):
        is_trained = row["role"] not in ("base", "gold")
        method = f"{row['method.forget']} + {row['method.retain']}" if is_trained else UNKNOWN
        part = format_coreset_size(str(row["select.name"]), row["select.ratio"] or FULL_RATIO)
        is_best = row["trial_id"] in best_ids and row["role"] == "grid"
        cells = (
            names[row["trial_id"]],
            f"{row['role']}, {BEST}" if is_best else row["role"],
            method,
            part if is_trained else UNKNOWN,
            format_number(row["train.seed"]) if is_trained else UNKNOWN,
            row["status"],
            format_mean(row["forgetting"]),
            format_mean(row["utility"]),
        )
        printed.add_row(*(Text(cell) for cell in cells))
    console.print(printed)
    line = f"{table['trial_id'].n_unique()} trials; rayunlearn show RUN ID, or {BEST}, prints one"
    console.print(line, highlight=False, soft_wrap=True)


TRIAL_HEADERS = ("trial", "role", "method", "part", "seed", "status", "forget", "utility")
TRIAL_NUMBERS = ("seed", "forget", "utility")


def print_documents(run: Run, trial_id: str, console: Console) -> None:
    """Print the questions of the forget set that a trial was asked, the most changed first: where
    no question is explained yet, one of them can be chosen.
    """
    metric = objective_of(run.experiment).forgetting
    answers = run.examples.filter(
        pl.col("split") == "forget", pl.col("metric") == metric, pl.col("attack") == "none"
    )
    base = run.plan.filter(pl.col("role") == "base").select("trial_id")
    before = (
        answers.join(base, on="trial_id", how="semi")
        .group_by("doc_id")
        .agg(pl.col("value").mean().alias("before"))
    )
    rows = (
        answers.filter(pl.col("trial_id") == trial_id)
        .group_by("doc_id")
        .agg(pl.col("value").mean())
        .join(before, on="doc_id", how="left")
        .with_columns((pl.col("value") - pl.col("before")).abs().alias("change"))
        .sort("change", "doc_id", descending=[True, False], nulls_last=True)
        .collect()
    )
    printed = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("question", f"{metric} of base", f"of trial {trial_id[:SHORT_ID]}"):
        printed.add_column(header, justify="left" if header == "question" else "right")
    names = short_ids(rows["doc_id"].to_list())
    for row in rows.head(MAX_DOCUMENTS).iter_rows(named=True):
        cells = (names[row["doc_id"]], format_mean(row["before"]), format_mean(row["value"]))
        printed.add_row(*(Text(cell) for cell in cells))
    console.print(printed)
    line = (
        f"{rows.height} questions of the forget set, none explained in this run; --doc ID explains"
        " one from the trial's weights"
    )
    console.print(line, highlight=False, soft_wrap=True)


# questions that `explain` lists
MAX_DOCUMENTS = 20


def print_trial(run: Path, trial_id: str, console: Console) -> None:
    """Print one trial: its status, its numbers, its config. A prefix will do where only one trial
    has it, and `best` is the best trial of the grid.

    Raises UserError for an id that no trial has (with the nearest) or that several begin with.
    """
    opened = open_run(run).in_memory()
    full_id = chosen_trial(opened, trial_id)
    row = opened.trials.filter(pl.col("trial_id") == full_id).collect().row(0, named=True)
    documented = column_names("trials")
    aimed = trial_table(opened).filter(pl.col("trial_id") == full_id, pl.col("over_forgotten"))
    _print_pairs(
        console,
        f"trial {full_id}: {row['status']}{f', {OVER_FORGOTTEN}' if aimed.height else ''}",
        {n: row[n] for n in documented if n not in ("trial_id", "status", "packages")},
    )
    print_evals(
        console,
        opened.evals.filter(pl.col("trial_id") == full_id)
        .sort("split", "metric", "step")
        .collect(),
    )
    print_looks(console, opened.curves.filter(pl.col("trial_id") == full_id).collect())
    _print_pairs(console, "settings", {n: v for n, v in row.items() if n not in documented})
    _print_pairs(console, "packages", json.loads(row["packages"] or "{}"))


def print_looks(console: Console, curves: pl.DataFrame) -> None:
    """What the looks of training saw: a line per look, a column per split and metric; nothing for a
    trial of an earlier version.
    """
    points = curves.filter(pl.col("kind") == "training").with_columns(
        pl.concat_str("split", "metric", separator=" ").alias("series")
    )
    if points.is_empty():
        return
    series = points["series"].unique(maintain_order=True).to_list()
    printed = Table(title="while it unlearned", title_justify="left", title_style="bold", box=None)
    for name in ("step", *series):
        printed.add_column(name, justify="right")
    for (step,), means in points.sort("x", maintain_order=True).group_by("x", maintain_order=True):
        values = dict(means.select("series", "value").iter_rows())
        cells = (format_number(values.get(name)) for name in series)
        printed.add_row(f"{step:g}", *(Text(cell) for cell in cells))
    console.print(printed, "")


def _fitting_parts(view: TableView, width: int, named_by: int) -> list[list[int]]:
    """Columns that fit into `width` characters, two of them between columns; and, where the
    headline is not among them, those of a second table, the last to be dropped first.
    """
    widths, columns = column_widths(view.headers, view.rows), list(range(len(view.headers)))
    for name in COLUMNS_DROPPED_FIRST:
        if _fits(widths, columns, width):
            break
        columns = [i for i in columns if not view.headers[i].startswith(name)]
    dropped = [i for i in range(len(view.headers)) if i not in columns]
    if not any(view.headers[i].startswith(HEADLINE) for i in dropped):
        return [columns]
    narrow, second = least_widths(view.headers, view.rows, view.numeric), list(range(named_by))
    for name in (*HEADLINE, *reversed(COLUMNS_DROPPED_FIRST)):
        more = [i for i in dropped if view.headers[i].startswith(name) and i not in second]
        if more and _fits(narrow, [*second, *more], width):
            second += more
    return [columns, sorted(second)] if len(second) > named_by else [columns]


def _fits(widths: Sequence[int], columns: Sequence[int], width: int) -> bool:
    return sum(widths[i] + GAP for i in columns) - GAP <= width


def _print_pairs(console: Console, title: str, pairs: dict[str, Any]) -> None:
    """Name and value, what is not there left out."""
    set_values = {name: value for name, value in pairs.items() if value is not None and value != ""}
    if not set_values:
        return
    printed = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    for name, value in set_values.items():
        printed.add_row(Text(name, style="dim"), Text(format_number(value)))
    console.print(printed, "")


def print_evals(console: Console, evals: pl.DataFrame) -> None:
    """Rows of `evals` as a table."""
    printed = Table(
        title="measured", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for name in ("split", "metric", "step", "value", "stderr", "n"):
        printed.add_column(name, justify="left" if name in ("split", "metric") else "right")
    for row in evals.iter_rows(named=True):
        printed.add_row(
            *(
                Text(format_number(row[name]))
                for name in ("split", "metric", "step", "value", "stderr", "n")
            )
        )
    if evals.height:
        console.print(printed, "")
