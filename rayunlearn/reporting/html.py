"""One page that needs nothing else: a page for readers who have to decide, then findings in words,
the tables, the figures, what failed and where it all came from.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup, escape

from rayunlearn.analysis.baselines import baseline_table
from rayunlearn.analysis.coreset_table import coreset_table, extra_settings
from rayunlearn.analysis.equal_retention import has_calibrated
from rayunlearn.analysis.generations import is_private
from rayunlearn.analysis.labels import format_number
from rayunlearn.analysis.run_frames import trial_table
from rayunlearn.reporting.attack_tables import attack_tables
from rayunlearn.reporting.figures import figures_of
from rayunlearn.reporting.glossary import TERMS
from rayunlearn.reporting.heatmap import page_maps
from rayunlearn.reporting.page_source import page_source, stamped
from rayunlearn.reporting.page_tables import (
    CORESET_DETAILS,
    MAX_WIDE_COLUMNS,
    page_tables,
    plain_view,
)
from rayunlearn.reporting.sentences import (
    caution_sentences,
    finding_sentences,
    status_counts,
    status_lines,
    warning_sentences,
)
from rayunlearn.reporting.summary import INTERVALS, run_summary, summary_sections
from rayunlearn.reporting.tables import (
    baseline_sentences,
    baseline_view,
    coreset_view,
    over_forgotten_sentence,
    ranking_sentences,
    ranking_view,
)
from rayunlearn.reporting.text_tables import (
    HIDDEN_TEXTS,
    TEXTS_CAPTION,
    hides_texts,
    text_comparisons,
)
from rayunlearn.schema import SECONDS_BY_PART
from rayunlearn.storage.parquet import write_bytes
from rayunlearn.storage.run import Run, open_run

# of failures and of documents rejected; the rest is in the Parquet files and is counted
MAX_ROWS = 200
# of a text that a model wrote, the rest is folded: repetition can be long
SHOWN_CHARACTERS = 240


def write_report(run: Path, file: Path | None = None) -> Path:
    """Rebuild the report from the run's Parquet files alone.

    Raises UserError for a folder that is no run.

    Args:
        run: folder of a run.
        file: where the page is written; None is report.html in the run.

    Returns:
        Path of the page, which needs no other file.

    Example:
        >>> write_report(Path("runs/selectors/1")).as_posix()
        'runs/selectors/1/report.html'
    """
    return write_page(open_run(run).in_memory(), file or Path(run) / "report.html")


def write_page(run: Run, file: Path) -> Path:
    """The report of an opened run as `file`, with a stamp of what it was drawn from."""
    write_bytes(file, stamped(page(run).encode("utf-8"), page_source(run)))
    return file


def page(run: Run) -> str:
    """The page as text. Every value is escaped: a run may hold text that came from anywhere."""
    table, chosen = coreset_table(run), baseline_table(run)
    question, _, rest = str(run.experiment.get("question", "")).strip().partition("\n\n")
    view, named_by = coreset_view(table, run.experiment), 3 + len(extra_settings(table))
    text = _template().render(
        name=run.experiment.get("name", run.path.name),
        version=run.experiment.get("version", ""),
        question=question,
        background=rest.strip(),
        warnings=warning_sentences(run, table),
        brief=run_summary(run, table),
        findings=[*finding_sentences(run, table), *over_forgotten_sentence(table)],
        control=page_tables(plain_view(*ranking_view(run))) if has_calibrated(run) else None,
        control_words=ranking_sentences(run),
        beside=None if chosen.is_empty() else page_tables(plain_view(*baseline_view(chosen))),
        beside_words=baseline_sentences(chosen),
        caution=caution_sentences(run.experiment),
        intervals=INTERVALS,
        status_counts=status_counts(run),
        status_lines=status_lines(run),
        view=view,
        view_tables=page_tables(view, named_by=named_by, details=CORESET_DETAILS),
        figures=figures_of(run, table),
        **_details(run),
    )
    return text.lstrip()


def _details(run: Run) -> dict[str, Any]:
    """What the page shows behind its table and figures, by its name in the template."""
    attacks = [
        {
            "caption": part.caption,
            "notes": part.notes,
            "tables": page_tables(
                plain_view(part.headers, part.rows, is_numeric=False), size=MAX_WIDE_COLUMNS
            ),
        }
        for part in attack_tables(run)
    ]
    return {
        "attacks": attacks,
        "sections": [vars(s) | {"tables": page_tables(s.view)} for s in summary_sections(run)],
        # their tokens are the corpus's words
        "heat_maps": [] if is_private(run) else page_maps(run),
        "texts": text_comparisons(run),
        "texts_caption": HIDDEN_TEXTS if hides_texts(run) else TEXTS_CAPTION,
        "texts_hidden": hides_texts(run),
        "max_rows": MAX_ROWS,
        "failures": _failures(run),
        "quarantine": _rejected(run),
        "provenance": provenance(run),
        "settings": _settings(run),
        "metrics": _measured_metrics(run),
        "glossary": TERMS,
    }


def _template() -> jinja2.Template:
    """The page's template; a name that it lacks is an error, not an empty text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["code"] = with_code
    environment.filters["cut"] = cut_text
    environment.filters["breakable"] = breakable
    environment.tests["grouped"] = is_grouped
    return environment.from_string(
        (files("rayunlearn.reporting") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    )


def cut_text(text: str) -> tuple[str, str]:
    """(Beginning that a page shows, the rest that it folds), cut between two words.

    Example:
        >>> [len(part) for part in cut_text("to and fro " * 30)]
        [238, 92]
    """
    if len(text) <= SHOWN_CHARACTERS:
        return text, ""
    end = text.rfind(" ", 0, SHOWN_CHARACTERS) + 1 or SHOWN_CHARACTERS
    return text[:end], text[end:]


def is_grouped(rows: Sequence[Sequence[object]]) -> bool:
    """Whether rows of the same first cell stand together, and some do: lines between them help a
    reader then, and say nothing otherwise.

    Example:
        >>> is_grouped([("npo", 1), ("npo", 2), ("rmu", 1)]), is_grouped([("a",), ("b",), ("a",)])
        (True, False)
    """
    names = [row[0] for row in rows]
    begun = sum(at == 0 or name != names[at - 1] for at, name in enumerate(names))
    return begun == len(set(names)) < len(names)


def with_code(text: str) -> Markup:
    """Text whose parts between back-ticks are set as code, everything in it escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def breakable(text: str) -> Markup:
    """A name whose parts may stand in two lines, everything in it escaped.

    Example:
        >>> str(breakable("key_probability"))
        'key_<wbr>probability'
    """
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def _measured_metrics(run: Run) -> list[Mapping[str, Any]]:
    """What each metric of the run's rows is; those that were not measured are left out."""
    measured = set(run.evals.select("metric").unique().collect()["metric"])
    return [row for row in run.experiment.get("metrics", ()) if row["name"] in measured]


def _rejected(run: Run) -> list[dict[str, Any]]:
    """Documents that were rejected, without their text where the corpus is private."""
    rows = run.quarantine.collect()
    if is_private(run):
        rows = rows.with_columns(pl.lit("(private)").alias("excerpt"))
    return rows.to_dicts()


def _failures(run: Run) -> list[dict[str, Any]]:
    """Trials that did not end as complete, with the cell they stood in."""
    trials = (
        trial_table(run)
        .filter(pl.col("status") != "complete")
        .unique("trial_id", keep="first", maintain_order=True)
    )
    names = [
        "trial_id",
        "role",
        "status",
        "error_type",
        "error",
        "error_where",
        "optimizer_steps",
        "forgetting",
        "utility",
    ]
    return trials.select(
        *names, "method.forget", "select.name", "select.ratio", "train.seed"
    ).to_dicts()


def provenance(run: Run) -> list[tuple[str, str]]:
    """What made the numbers: commits, versions, machines, time. Several values are listed, never
    one of them.
    """
    trials = run.trials.collect()
    facts = [
        (name, ", ".join(sorted(str(v) for v in trials[name].drop_nulls().unique())))
        for name in ("commit", "hardware", "host", "corpus_digest", "model_digest")
    ]
    versions = sorted(
        {line for text in trials["packages"].drop_nulls().unique() for line in _versions(text)}
    )
    seconds = {name: trials[name].sum() for name in SECONDS_BY_PART if trials[name].count() > 0}
    facts.append(("packages", ", ".join(versions)))
    facts.append(
        (
            "seconds in trials",
            ", ".join(
                f"{name.removeprefix('seconds_')} {format_number(float(value or 0))}"
                for name, value in seconds.items()
            ),
        )
    )
    facts.append(("first trial started", str(trials["started_at"].min() or "")))
    facts.append(("last trial started", str(trials["started_at"].max() or "")))
    return [(name, value) for name, value in facts if value]


def _versions(text: str) -> list[str]:
    return [f"{name} {version}" for name, version in json.loads(text).items()]


def _settings(run: Run) -> list[tuple[str, str]]:
    """What the experiment file said: axes, search, budget, objective, as JSON."""
    experiment: Mapping[str, Any] = run.experiment
    return [
        (name, json.dumps(experiment[name], indent=1, ensure_ascii=False))
        for name in ("axes", "search", "budget", "objective")
        if name in experiment
    ]
