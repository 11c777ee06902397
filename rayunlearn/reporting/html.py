"""One page that needs nothing else: findings in words, the table, the figures, what failed and
where it all came from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from plotly.offline import get_plotlyjs

from rayunlearn.analysis.baselines import baseline_table
from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.equal_retention import has_calibrated
from rayunlearn.analysis.generations import is_private
from rayunlearn.analysis.labels import format_number
from rayunlearn.analysis.run_frames import trial_table
from rayunlearn.reporting import plots
from rayunlearn.reporting.attack_tables import attack_tables
from rayunlearn.reporting.heatmap import page_maps
from rayunlearn.reporting.sentences import (
    caution_sentences,
    finding_sentences,
    status_counts,
    status_lines,
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

CAPTIONS = {
    "coreset": (
        "Coreset curve",
        (
            "Left is less of the forget set. A flat line means that a small part does what the"
            " whole does. Bars: 95% t intervals over seeds and documents."
        ),
    ),
    "coverage": (
        "Coverage curve",
        (
            "The same cells by the share of facts that the kept documents state. Lines that part"
            " above and meet here: coverage explains the ratio."
        ),
    ),
    "pareto": (
        "Forgetting against utility",
        (
            "Every measured trial. Grey line: the trials that no other beats. Hollow: asked for by"
            " Optuna. Triangles: over-forgotten, below gold or chance. Crosses: collapsed."
        ),
    ),
    "path": (
        "On the straight line",
        (
            "Mean answer probability between two models in weight space, mean over seeds: from"
            " base, or from the full-set model of the same seed, on the left, to the trial's own on"
            " the right. A path that leaves the straight line between its ends on the bad side has"
            " a barrier."
        ),
    ),
    "training": (
        "Training curves",
        "One trial (its first seed) per selector and part. Colour: part kept; dash: selector.",
    ),
    "looks": (
        "While it unlearned",
        (
            "What each look at the same trials found, on up to 64 probes of a split: the forgetting"
            " metric on forget and the utility metric; step 0 is base."
        ),
    ),
    "gradients": (
        "Gradients while it unlearned",
        (
            "G-effect of the same trials, as a cosine: of the forget loss's gradient with that of"
            " the NLL of forget and of retain documents. Below zero a step down the forget loss"
            " raises that NLL: wanted on forget, harm on retain."
        ),
    ),
    "layers": (
        "Block by block",
        (
            "What weights and hidden states tell, mean over seeds: how far a block's weights moved"
            " from base, in how many directions, and how far apart its activations of forget and"
            " retain probes stand."
        ),
    ),
    "recovery": (
        "What attacks recovered",
        (
            "Recovered fraction per attack and model: 0 as unlearned, 1 as before unlearning. The"
            " intervals are in the table above."
        ),
    ),
    "tuning": (
        "Tuning",
        (
            "Trials in the order in which Optuna asked for them, and the best that kept utility"
            " over the floor."
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the page: anchor, title, how to read it, and Plotly's JSON, safe inside a script
    element.
    """

    anchor: str
    title: str
    caption: str
    content: str


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
    path = file or Path(run) / "report.html"
    write_bytes(path, page(open_run(run)).encode("utf-8"))
    return path


def page(run: Run) -> str:
    """The page as text. Every value is escaped: a run may hold text that came from anywhere."""
    table, chosen = coreset_table(run), baseline_table(run)
    question, _, rest = str(run.experiment.get("question", "")).strip().partition("\n\n")
    return _template().render(
        name=run.experiment.get("name", run.path.name),
        version=run.experiment.get("version", ""),
        question=question,
        background=rest.strip(),
        brief=run_summary(run, table),
        findings=[*finding_sentences(run, table), *over_forgotten_sentence(table)],
        control=ranking_view(run) if has_calibrated(run) else None,
        control_words=ranking_sentences(run),
        beside=None if chosen.is_empty() else baseline_view(chosen),
        beside_words=baseline_sentences(chosen),
        caution=caution_sentences(run.experiment),
        intervals=INTERVALS,
        status_counts=status_counts(run),
        status_lines=status_lines(run),
        view=coreset_view(table, run.experiment),
        figures=_figures(run, table),
        attacks=attack_tables(run),
        sections=summary_sections(run),
        # their tokens are the corpus's words
        heat_maps=[] if is_private(run) else page_maps(run),
        texts=text_comparisons(run),
        texts_caption=HIDDEN_TEXTS if hides_texts(run) else TEXTS_CAPTION,
        texts_hidden=hides_texts(run),
        plotly=get_plotlyjs(),
        max_rows=MAX_ROWS,
        failures=_failures(run),
        quarantine=_rejected(run),
        provenance=provenance(run),
        settings=_settings(run),
        metrics=run.experiment.get("metrics", []),
    )


def _template() -> jinja2.Template:
    """The page's template; a name that it lacks is an error, not an empty text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(
        (files("rayunlearn.reporting") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    )


def _figures(run: Run, table: pl.DataFrame) -> list[Figure]:
    """The figures that have something to show, in the order of `CAPTIONS`."""
    figures = {
        "coreset": plots.coreset_curve(table, run.experiment),
        "coverage": plots.coverage_curve(table, run.experiment),
        "pareto": plots.pareto(run),
        "path": plots.weight_paths(run),
        "training": plots.training_curves(run),
        "looks": plots.look_curves(run),
        "gradients": plots.gradient_curves(run),
        "layers": plots.layer_maps(run),
        "recovery": plots.recovery_map(run),
        "tuning": plots.tuning_history(run),
    }
    drawn_figures = [(anchor, figures[anchor], *words) for anchor, words in CAPTIONS.items()]
    return [
        Figure(anchor=a, title=t, caption=c, content=script_json(f.to_plotly_json()))
        for a, f, t, c in drawn_figures
        if f is not None
    ]


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment there."""
    # NaN and infinity are no JSON: drawn as gaps
    plain = json.loads(json.dumps(value, allow_nan=True), parse_constant=lambda _: None)
    return (
        json.dumps(plain, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


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
