"""docs/findings.md and a page for each question, made from the Parquet files of the experiments:
`python -m experiments.findings.page RUNS DOCS`.

A page begins with the answer in one sentence and the picture; what was asked, what came out with
intervals and the table are folded; what is published beside it and where ours differs follow. The
answers are written by hand from the verdicts of experiments/LOG.md; every number is computed. A run
that is not there leaves its page as it is, and without one it is named as not run.
"""

import argparse
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from experiments.findings.by_split import (
    GENERAL,
    covered_sentences,
    split_sentences,
    split_table,
)
from experiments.findings.figures import picture_of
from experiments.findings.optimizers import (
    cell_headers,
    cell_values,
    comparison_sentences,
    optimizer_cells,
)
from experiments.findings.paper import with_anchors
from experiments.findings.parts import version_of
from experiments.findings.verdicts import (
    BEYOND_PLAIN,
    PREDICTORS,
    against_random,
    cross_dataset_prediction,
    dilemma_sentences,
    faithfulness_sentences,
    in_words,
    recovery_by_method,
    recovery_sentences,
    residual_after_attack,
    step_gaps,
    step_lags,
)
from rayunlearn.analysis.baselines import baseline_table
from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.equal_retention import has_calibrated
from rayunlearn.analysis.equivalence import EquivalenceCriterion, frontier_of_run
from rayunlearn.analysis.labels import format_interval, format_number, format_percent
from rayunlearn.analysis.retain_choice import retain_table
from rayunlearn.reporting.attribution_tables import attribution_sections
from rayunlearn.reporting.connectivity_tables import connectivity_sections
from rayunlearn.reporting.formats import escape_html, escape_pipes, question_of
from rayunlearn.reporting.html import provenance
from rayunlearn.reporting.retain_tables import retain_sections, retain_sentences
from rayunlearn.reporting.robustness_tables import faithfulness_sections
from rayunlearn.reporting.sentences import (
    control_sentences,
    frontier_in_words,
    starting_points,
    status_lines,
)
from rayunlearn.reporting.summary import SummaryTable, summary_block
from rayunlearn.reporting.tables import (
    Section,
    baseline_sentences,
    baseline_view,
    ranking_sentences,
    ranking_view,
)
from rayunlearn.storage.run import Run, open_run

# of the equivalence tests of this page
MARGIN = 0.1
Verdict = Callable[[Run], tuple[list[str], SummaryTable | None]]
HOW_IT_RAN = "How it ran: trials, settings, commit, time"
SHOWN_FACTS = ("commit", "hardware", "seconds in trials", "first trial started")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A question: the experiment, its answer in one sentence, how its rows become a verdict, what
    is published, and where ours differs from that.
    """

    experiment: str
    title: str
    verdict: Verdict
    published: str
    differs: str
    # of the run, '' for the one that parts.py has first
    version: str = ""
    # '' where it has not been run
    answer: str = ""

    @property
    def name(self) -> str:
        """`coreset-effect`: the name of its page and, with `findings-` before it, its picture."""
        return "-".join(filter(None, (self.experiment.replace("_", "-"), self.version)))

    def folder(self, runs: Path, version: str) -> Path:
        """Where the run is."""
        return runs / self.experiment / (self.version or version or version_of(self.experiment))


def findings_pages(
    runs: Path, pictures: Path | None = None, *, docs: Path | None = None, version: str = ""
) -> dict[str, str]:
    """Text by file name below docs/, from `version` of every experiment under `runs`: a page for
    every question whose run is there, and `findings.md`, which names them all. Pictures are written
    to the folder `pictures`; pages that `docs` has already count as run.
    """
    pages = {
        f"findings/{finding.name}.md": "\n".join(finding_page(finding, folder, pictures))
        for finding in FINDINGS
        if has_run(folder := finding.folder(runs, version))
    }
    before = (docs / "findings").glob("*.md") if docs else ()
    present = {*pages, *(f"findings/{file.name}" for file in before)}
    rows = [f"| {finding.title} | {_answer_cell(finding, present)} |" for finding in FINDINGS]
    head = ["| question | answer |", "|---|---|"]
    return pages | {"findings.md": "\n".join([HEAD, *head, *rows, ""])}


def has_run(folder: Path) -> bool:
    """Whether an experiment has trials that ended."""
    is_planned = (folder / "plan.parquet").is_file()
    return is_planned and "stage" in open_run(folder).trials.collect_schema()


def _answer_cell(finding: Finding, pages: Collection[str]) -> str:
    page = f"findings/{finding.name}.md"
    if page not in pages:
        return f"not run yet: `experiments/{finding.experiment}.py`"
    return f"{finding.answer} [Numbers]({page})"


def finding_page(finding: Finding, folder: Path, pictures: Path | None = None) -> list[str]:
    """The page of one question, in lines."""
    run = open_run(folder).in_memory()
    sentences, table = finding.verdict(run)
    return [
        f"# {finding.title}",
        "",
        *([f"**{finding.answer}**", ""] if finding.answer else []),
        *(_figure_lines(finding, run, pictures) if pictures else []),
        "<details markdown>",
        "<summary>What was asked, every comparison, the table</summary>",
        "",
        f"*{escape_html(question_of(run))}*",
        "",
        *(f"- {escape_html(sentence)}" for sentence in sentences),
        "",
        *([*escape_pipes(table), ""] if table else []),
        "</details>",
        "",
        f"**Published.** {finding.published}",
        "",
        f"**What differs.** {finding.differs}",
        "",
        *_how_it_ran(finding, run),
        FOOT,
        "",
    ]


def _how_it_ran(finding: Finding, run: Run) -> list[str]:
    """The experiment file, what ended how, what was left out, commit and time, folded."""
    states = [escape_html(_without_folders(line)) for line in status_lines(run)]
    facts = [
        f"{name}: {escape_html(value)}" for name, value in provenance(run) if name in SHOWN_FACTS
    ]
    return [
        "<details markdown>",
        f"<summary>{HOW_IT_RAN}</summary>",
        "",
        f"- `experiments/{finding.experiment}.py`",
        *(f"- {line}" for line in (*states, *facts)),
        "",
        "</details>",
        "",
    ]


def equivalence_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """The test of equivalence: what is shown to be enough in words, every setting as a row of the
    table.
    """
    table, standard = coreset_table(run), EquivalenceCriterion(margin=MARGIN)
    tested = frontier_of_run(run, standard)
    equivalent, idle = (
        tested.filter(pl.col("ratio").is_not_null()),
        tested.filter(pl.col("verdict") == "full set does not forget"),
    )
    counted = (
        f"Of {tested.height} settings a smaller part is shown to be enough (within {MARGIN:g} of"
        f" the full set in forgetting and in utility) in {equivalent.height}; in {idle.height}"
        " the full"
        " set itself does not forget, so that there is nothing to match."
    )
    ruined = tested.filter(pl.col("verdict") == "full set over-forgets").height
    if ruined:
        counted += f" In {ruined} the full set is over-forgotten, below gold: no standard either."
    sentences = [
        counted,
        *frontier_in_words(equivalent, standard),
        *starting_points(run, table),
        *control_sentences(table),
    ]
    return sentences, _equivalence(tested) if tested.height else summary_block(
        run, table, "left"
    ).table


def step_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Which partner a coreset is nearer to, and which coresets lag behind the full set however long
    they train.
    """
    gaps = step_gaps(run)
    sentences = []
    for row in gaps.filter(pl.col("gap") == "epochs - steps").iter_rows(named=True):
        sentence = (
            "steps are what counts"
            if row["low"] > 0
            else "refuted: epochs are what counts"
            if row["high"] < 0
            else "not decided"
        )
        sentences.append(
            f"{row['method']}: the distance to the full set at equal epochs is larger than at equal"
            f" steps by {in_words(row)}, over {row['pairs']} pairs: {sentence}."
        )
    for row in gaps.filter(pl.col("gap") == "full set, last - first").iter_rows(named=True):
        sentence = "it goes on" if row["high"] < 0 else "no further forgetting is shown"
        sentences.append(
            f"{row['method']}: the full set past its first epoch: {in_words(row)}: {sentence}."
        )
    for row in step_lags(run).iter_rows(named=True):
        sentence = (
            "it lags: documents count"
            if row["low"] > 0
            else "it is ahead"
            if row["high"] < 0
            else "not significantly different"
        )
        sentences.append(
            f"{row['method']}, {row['ratio']:.3g} kept, against the full set after the same"
            f" {row['steps']:g} steps: {in_words(row)}: {sentence}."
        )
    return sentences, _table(gaps)


def coverage_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """What predicts forgetting on a dataset that was left out, whether covering more beats random,
    and how little is enough on each dataset.
    """
    predictions, sentences = cross_dataset_prediction(run), []
    for (method,), of_method in predictions.group_by(["method"], maintain_order=True):
        with_facts = of_method.drop_nulls([f"error_by_{name}" for name in PREDICTORS.values()])
        for datasets in (
            (with_facts, of_method) if 0 < with_facts.height < of_method.height else (of_method,)
        ):
            sentences += _prediction_sentences(str(method), datasets)
    for row in against_random(run, "keyword_coverage").iter_rows(named=True):
        sentence = (
            "forgets more"
            if row["high"] < 0
            else "forgets less"
            if row["low"] > 0
            else "not significantly different"
        )
        sentences.append(
            f"{row['method']}, {row['dataset']}, {row['ratio']:g}: keyword_coverage minus random"
            f" {in_words(row)} ({row['seeds']} seeds): {sentence}."
        )
    return sentences, _table(predictions)


def _prediction_sentences(method: str, datasets: pl.DataFrame) -> list[str]:
    """Mean errors over these datasets of every predictor that is known of all of them, and how
    often each finds the ratio that is enough.
    """
    names = [name for name in PREDICTORS.values() if datasets[f"error_by_{name}"].null_count() == 0]
    error = {name: float(datasets[f"error_by_{name}"].to_numpy().mean()) for name in names}
    right = {
        name: int((datasets[f"enough_by_{name}"] == datasets["enough"]).sum()) for name in names
    }
    if not names:
        return []
    return [
        f"{method}, {datasets.height} datasets, each predicted from the others: mean error of the"
        " unlearned"
        f" share by {', '.join(f'{name} {error[name]:.3f}' for name in names)}; the least by"
        f" {min(error, key=lambda name: error[name])}. The smallest ratio that is enough is"
        f" predicted correctly on {', '.join(f'{right[name]} by {name}' for name in names)}."
    ]


def defence_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Which arm leaves an attacker less than plain NPO does."""
    table = residual_after_attack(run)
    if not table.height:
        return ["No attack has been run on it yet."], summary_block(
            run, coreset_table(run), "left"
        ).table
    compared = table.filter(pl.col("beyond_plain").is_not_null())
    less, more = (
        compared.filter(pl.col("beyond_high") < 0),
        compared.filter(pl.col("beyond_low") > 0),
    )
    sentences = [
        f"Plain NPO under {row['attack']}: {format_number(row['left'])} left as unlearned,"
        f" {format_number(row['mean'])} after it."
        for row in table.filter(pl.col("arm") == "plain").iter_rows(named=True)
    ]
    for sentence, rows in (("less", less), ("more", more)):
        sentences += [
            f"{row['arm']} under {row['attack']}: {format_number(row['left'])} left as unlearned,"
            f" {format_number(row['mean'])} after it, which is {sentence} than of plain NPO:"
            f" {in_words(row, names=BEYOND_PLAIN)}."
            for row in rows.iter_rows(named=True)
        ]
    counts = (
        f"{less.height} leave the attacker less in the end than plain NPO does, {more.height} more"
    )
    sentences.append(
        f"Of {compared.height} arms under an attack {counts}; the others are not significantly"
        " different (not"
        " corrected for their number)."
    )
    return sentences, _table(table)


def attack_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """The first page's answers on what is left and what came back."""
    table = coreset_table(run)
    left, back = (summary_block(run, table, anchor) for anchor in ("left", "back"))
    return [*left.sentences[1:], *back.sentences], back.table or left.table


def baseline_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Selectors beside random documents, texts beside random words."""
    table = baseline_table(run)
    headers, rows = baseline_view(table)
    return baseline_sentences(table), SummaryTable(
        headers=headers, rows=tuple(rows)
    ) if rows else None


def split_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """What every cell leaves on each split, whether a part does what all documents do, and what the
    controls of a coreset do.
    """
    table = split_table(run)
    wide = table.with_columns(
        pl.struct("split", "mean", mean_low="low", mean_high="high")
        .map_elements(_value_on_split, return_dtype=pl.String)
        .alias("value")
    ).pivot(on="split", index=["role", "method", "arm", "ratio", "seeds"], values="value")
    sentences = [
        *split_sentences(run),
        *covered_sentences(run),
        *baseline_sentences(baseline_table(run)),
    ]
    return sentences, _table(wide)


def _value_on_split(row: Mapping[str, Any]) -> str:
    """With a digit more where the numbers are of general text, all of them small and alike."""
    if row["split"] == GENERAL:
        return f"{row['mean']:.4f} [{row['mean_low']:.4f}, {row['mean_high']:.4f}]"
    return format_interval(row, "mean")


def attribution_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Whether emphasis recovers answers and what was destroyed; what is left where trials
    explain nothing.
    """
    return _first(dilemma_sentences(run), [*attribution_sections(run)], run)


def connectivity_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Coreset models beside the full-set model, in weights, answers and under attack."""
    return _first(faithfulness_sentences(run), [*connectivity_sections(run)], run)


def recovery_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """What every attack recovers of each method, beside gold; what is left where nothing was
    attacked.
    """
    table = recovery_by_method(run)
    return (recovery_sentences(run), _table(table)) if table.height else attack_findings(run)


def metric_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Which metrics tell models that know from models that never did, and survive attacks."""
    return _first([], [*faithfulness_sections(run)], run)


def retain_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """Chosen retain documents beside as many drawn at random."""
    _, table = _first([], retain_sections(run), run)
    return retain_sentences(retain_table(run)), table


def optimizer_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """What attacks recover from each method and optimizer, beside AdamW."""
    cells = optimizer_cells(run)
    attacks = list(dict.fromkeys(attack for cell in cells for attack in cell.attacked))
    rows = tuple(dict.fromkeys(cell_values(cell, attacks) for cell in cells))
    return comparison_sentences(cells), SummaryTable(headers=cell_headers(attacks), rows=rows)


def equal_retention_findings(run: Run) -> tuple[list[str], SummaryTable | None]:
    """The two orders of the methods."""
    if not has_calibrated(run):
        return attack_findings(run)
    headers, rows = ranking_view(run)
    return ranking_sentences(run), SummaryTable(headers=headers, rows=tuple(rows))


def _without_folders(text: str) -> str:
    """The text in one line, with the last part of every path alone: a page is read elsewhere."""
    return re.sub(r"(data\.path=)\S*/([^/\s,]+)", r"\1\2", " ".join(text.split()))


def _figure_lines(finding: Finding, run: Run, pictures: Path) -> list[str]:
    """The experiment's picture, written beside the page, and the line that shows it."""
    picture = picture_of(finding.experiment, run)
    if picture is None:
        return []
    name = f"findings-{finding.name}.svg"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / name).write_text(picture, encoding="utf-8")
    return [f"![{finding.title}](../pictures/{name})", ""]


def _equivalence(tested: pl.DataFrame) -> SummaryTable:
    """A row per setting, method and selector of a frontier: the smallest part that is shown to be
    enough, and where it ends.
    """
    headers = (
        "method",
        "selector",
        "where",
        "shown to be enough",
        "ends at",
        "difference there",
        "of",
        "verdict",
    )
    rows = [
        (
            row["method"],
            row["selector"],
            row["setting"],
            *_share_and_end(row),
            format_number(row["difference"]),
            row["stopped_by"] or "-",
            row["verdict"],
        )
        for row in tested.iter_rows(named=True)
    ]
    return SummaryTable(headers=headers, rows=tuple(rows))


def _share_and_end(row: Mapping[str, Any]) -> tuple[str, str]:
    equivalent, end = (
        "-" if row[name] is None else format_percent(row[name]) for name in ("ratio", "stopped_at")
    )
    return equivalent, end


def _first(
    sentences: Sequence[str], sections: Sequence[Section], run: Run
) -> tuple[list[str], SummaryTable | None]:
    if not sections:
        return attack_findings(run)
    return [*sentences, sections[0].caption], SummaryTable(
        headers=sections[0].view.headers, rows=sections[0].view.rows
    )


def _table(frame: pl.DataFrame) -> SummaryTable | None:
    return (
        SummaryTable(
            headers=tuple(frame.columns),
            rows=tuple(tuple(format_number(v) for v in row) for row in frame.iter_rows()),
        )
        if frame.height
        else None
    )


STUDY = "Pal et al. 2504.10185"

DATASET_DIFFERENCE = (
    "A generated domain and a model of half a million parameters; there WMDP and MUSE with 7 B"
    " models."
)

REAL_MODEL_DIFFERENCE = (
    "A real model of 135 million parameters and facts that it knew before; there is no gold model,"
    " so what is compared with is base and the retain-only control."
)

FINDINGS: Sequence[Finding] = (
    Finding(
        experiment="pretrained_coreset",
        title="What do a few documents of a real model do?",
        answer=(
            "One question of twenty unlearns nearly what all twenty do, with RMU and with NPO, and"
            " so do wrong answers; facts outside the coreset are lost as those in it are: what is"
            " forgotten is a kind of question. Plain English hardly notices."
        ),
        verdict=split_findings,
        published=(
            f"{STUDY}, table 1: 5% of the forget set, chosen at random, does what all of it does;"
            " no control trains on other documents."
        ),
        differs=REAL_MODEL_DIFFERENCE,
    ),
    Finding(
        experiment="pretrained_coreset",
        title="Does that hold for another relation?",
        answer=(
            "Yes for the number of documents and for wrong answers; the same facts in other words"
            " lose half, where capitals lose a tenth to a third, as the search has it."
        ),
        verdict=split_findings,
        published="Nothing that we know of.",
        differs=f"{REAL_MODEL_DIFFERENCE} RMU at the settings of the capitals, not tuned anew.",
        version="1-languages",
    ),
    Finding(
        experiment="pretrained_control",
        title="Which method is best on a real model, once all retain the same?",
        answer=(
            "RMU leaves least and NPO, first before control, most; with four methods and five seeds"
            " no change of places is shown."
        ),
        verdict=equal_retention_findings,
        published=(
            "Unlearning with Control (2406.09179) compares methods after mixing back to equal"
            " retention, on TOFU."
        ),
        differs=REAL_MODEL_DIFFERENCE,
    ),
    Finding(
        experiment="pretrained_dilemma",
        title="Does emphasis recover what a real model has unlearned?",
        answer=(
            "No: key words recover no more of the answers than the same number of random words, a"
            " fifth at most, and no retain question is lost."
        ),
        verdict=attribution_findings,
        published=(
            "Understanding the Dilemma of Unlearning (2509.24675): six methods either stay"
            " recoverable by emphasis or destroy."
        ),
        differs=REAL_MODEL_DIFFERENCE,
    ),
    Finding(
        experiment="pretrained_unlearned",
        title="Is a real model's knowledge removed or merely suppressed?",
        answer=(
            "Suppressed: relearning ten of twenty facts recovers all of the other ten, of RMU"
            " and of LLMU; prompts and unrelated text recover a fifth at most."
        ),
        verdict=recovery_findings,
        published=(
            "Doshi & Stickland 2411.12103: prompts and training on unrelated text recover much of"
            " what LLMU and RMU took on WMDP and biology."
        ),
        differs=REAL_MODEL_DIFFERENCE,
    ),
    Finding(
        experiment="pretrained_tofu",
        title="How much of TOFU's forget01 does a real model need?",
        answer=(
            "Under RMU ten questions of forty come near gold as all do, and so do wrong answers to"
            " ten; two leave a fifth. NPO forgets the questions that it was shown far more than"
            " the others. With two authors no equivalence is shown."
        ),
        verdict=split_findings,
        published=(
            f"{STUDY}: on WMDP and MUSE 5% of the forget set does what all of it does; TOFU is not"
            " among its datasets."
        ),
        differs=(
            "A real model of 135 million parameters, forty retain questions of 3,960, two authors;"
            " here there is a gold model."
        ),
    ),
    Finding(
        experiment="pretrained_books",
        title="How much of a book does a real model need?",
        answer=(
            "Passages learned by heart are forgotten one by one: those that were trained on go, the"
            " others stay under NPO and mostly stay under RMU, which takes a third of them with"
            " any passages of the book."
        ),
        verdict=split_findings,
        published=f"{STUDY}: on MUSE's books 5% of the forget set does what all of it does.",
        differs="A real model of 135 million parameters, forty passages of one book; gold beside.",
    ),
    Finding(
        experiment="pretrained_mmlu",
        title="How much of a domain of questions does a real model need?",
        answer=(
            "Not decided: of two MMLU subjects this model knows little, and no change is shown with"
            " any part of them; RMU forgets the questions that it was shown and not their subject,"
            " and plain English pays for it."
        ),
        verdict=split_findings,
        published=f"{STUDY}: on WMDP 5% of the forget set does what all of it does.",
        differs=(
            "A real model of 135 million parameters that is barely above chance, MMLU's subjects in"
            " place of WMDP's texts."
        ),
    ),
    Finding(
        experiment="coreset_effect",
        title="How little is enough?",
        answer=(
            "A random quarter is enough for RMU where twenty documents state each fact, and"
            " no part is shown to be enough where one does."
        ),
        verdict=equivalence_findings,
        published=(
            f"{STUDY}, table 1, wrong answers on WMDP-bio, Zephyr-7B: RMU 69.5% after all 600"
            " documents, 72.0 ± 1.8% after a random 5%; NPO 74.1 and 72.5 ± 1.2%."
        ),
        differs=f"{DATASET_DIFFERENCE} Redundancy is set, and two ends of it are compared.",
    ),
    Finding(
        experiment="keyword_effect",
        title="How many words carry it?",
        answer=("No share of keywords, up to every second word, does what whole documents do."),
        verdict=baseline_findings,
        published=(
            f"{STUDY}, section 4: keywords that a chat model names keep most of the effect on"
            " WMDP-bio at each ratio; their share of the words is not varied, and there is no arm"
            " of random words."
        ),
        differs=f"{DATASET_DIFFERENCE} Keywords by statistics; the share of words is the dial.",
    ),
    Finding(
        experiment="steps_or_data",
        title="Steps or documents?",
        answer=(
            "Mostly steps: at equal steps a quarter comes close to the full set; a sixteenth"
            " and less stay behind however long they train."
        ),
        verdict=step_findings,
        published=(
            f"{STUDY}, table B2: coresets of 10, 5 and 1% take 10, 20 and 100 epochs with RMU on"
            " WMDP, the same number of presentations as the full set; the full set is not run"
            " past its own."
        ),
        differs=f"{DATASET_DIFFERENCE} A constant rate, every length a run of its own.",
    ),
    Finding(
        experiment="redundancy",
        title="Does coverage of facts predict how little is enough?",
        answer=(
            "For RMU yes, better than keywords or the ratio do; for NPO it is not decided,"
            " and two tunings disagree on how well."
        ),
        verdict=coverage_findings,
        published="Nothing that we know of.",
        differs=(
            "The question is ours. Two tunings of the synthetic datasets, eight trials each, say"
            " how"
            " much hangs on them (experiments/LOG.md, 2026-11-22): facts predict RMU's unlearned"
            " share better than keywords or the ratio do in both tunings; NPO's is not decided."
        ),
    ),
    Finding(
        experiment="selectors",
        title="Does any selector beat random?",
        answer=("One of fifteen, keyword_coverage, on one dataset of three and at 5% only."),
        verdict=baseline_findings,
        published=(
            f"{STUDY}, table 1: GRAND, MODERATE and MIN-K % mostly lie inside random's variance."
        ),
        differs=(
            f"{DATASET_DIFFERENCE} More selectors, fewer seeds, Holm's correction over all"
            " comparisons of a"
            " corpus."
        ),
    ),
    Finding(
        experiment="keywords",
        title="Do keywords alone suffice?",
        answer=(
            "No: all cut texts forget less than whole documents, and keywords mostly less"
            " than the same number of random words."
        ),
        verdict=baseline_findings,
        published=(
            f"{STUDY}, section 4: keywords that a chat model names keep most of the effect on"
            " WMDP-bio; there is no arm of random words."
        ),
        differs=(
            f"{DATASET_DIFFERENCE} Keywords by statistics, compared with the same number of random"
            " words."
        ),
    ),
    Finding(
        experiment="control",
        title="Which method is best at equal retention?",
        answer=(
            "RMU goes from tenth place to first and plain gradient ascent from first to"
            " eleventh; two changes of places are significant after correction."
        ),
        verdict=equal_retention_findings,
        published=(
            "Unlearning with Control (2406.09179) compares methods after mixing back to equal"
            " retention, on TOFU."
        ),
        differs=(
            "Another dataset, a small budget of tuning for each method, and intervals of the ranks."
        ),
    ),
    Finding(
        experiment="truly_unlearned",
        title="Removed or merely suppressed?",
        answer=(
            "No black-box attack is shown to recover half of what LLMU or RMU took; a few"
            " recover up to 18%."
        ),
        verdict=recovery_findings,
        published=(
            "Doshi & Stickland 2411.12103: prompts and training on unrelated text recover much of"
            " what LLMU and RMU took on WMDP and biology."
        ),
        differs="Small models; multiple choice by likelihood; base and gold are attacked as well.",
    ),
    Finding(
        experiment="dilemma",
        title="Suppression or erasure?",
        answer=(
            "Emphasis on key words recovers no more than emphasis on random words, and the"
            " damage shows in questions that no training was shown."
        ),
        verdict=attribution_findings,
        published=(
            "Understanding the Dilemma of Unlearning (2509.24675): six methods either stay"
            " recoverable by emphasis or destroy."
        ),
        differs="Small models, bare words as emphasis, random words beside them.",
    ),
    Finding(
        experiment="faithfulness",
        title="Same model or same forgetting?",
        answer=(
            "RMU's coreset models lie on a path without a barrier to the full set's model,"
            " NPO's do not; attacks do not distinguish either."
        ),
        verdict=connectivity_findings,
        published=(
            f"{STUDY}, section 6: six points on the line between the two models, without a barrier"
            " in forgetting on WMDP."
        ),
        differs="Eleven points, three ratios, the barrier defined and with an interval.",
    ),
    Finding(
        experiment="defences",
        title="Does a defence survive attacks?",
        answer=(
            "No: relearning on ten documents recovers at least 0.95 of answer probability"
            " under every one."
        ),
        verdict=defence_findings,
        published=(
            "Fan et al. 2502.05374 report that sharpness-aware steps and weight averages make NPO"
            " on WMDP harder to relearn."
        ),
        differs=(
            "Another dataset; a capped loss, a masked loss and a forget set of few wordings stand"
            " beside them."
        ),
    ),
    Finding(
        experiment="metric_faithfulness",
        title="Which metric can be believed?",
        answer=(
            "All of them tell models that know from models that never did; relearning shows each to"
            " have missed something, few-shot multiple choice and activation patching least, which"
            " are not shown to be better than most others."
        ),
        verdict=metric_findings,
        published=(
            "OpenUnlearning (2506.12618) ranks metrics by faithfulness and robustness, extraction"
            " strength first; UDS (2605.24614) puts activation patching above all of them."
        ),
        differs=(
            "Half a million parameters, seven pairs of base and gold, nothing tuned. A first run,"
            " with models trained anew, had the first two in the other order (experiments/LOG.md)."
        ),
    ),
    Finding(
        experiment="linked_questions",
        title="Do other ways to a fact reach what was forgotten?",
        answer=(
            "Yes: asked by a second name RMU's models answer nearly as base does, by a link to"
            " another fact a third as well; combined queries recover nothing."
        ),
        verdict=recovery_findings,
        published=(
            "The Unlearning Mirage (2603.11266) and BLUR (2506.15699): multi-hop, aliases and"
            " combined queries recover what direct questions do not."
        ),
        differs=(
            "Base learns the other questions as well, since a model this small composes nothing by"
            " itself."
        ),
    ),
    Finding(
        experiment="retain_coreset",
        title="Does choosing the retain documents beat random ones?",
        answer=(
            "No: no selector keeps more than random documents do; under RMU the neighbours of the"
            " forget set kept less in both of two runs, which is shown in one of them alone."
        ),
        verdict=retain_findings,
        published=(
            "Bushipaka et al. 2509.05316 keep more by several kinds of neighbours beside general"
            " knowledge than by random retain documents."
        ),
        differs=(
            f"{DATASET_DIFFERENCE} A tenth of the retain set, equal steps, ten paired seeds of one"
            " base model; another base model gave differences twice as large (experiments/LOG.md)."
        ),
    ),
    Finding(
        experiment="optimizers",
        title="Does the optimizer decide how well unlearning lasts?",
        answer=(
            "With RMU Lion lasts longer under relearning than AdamW, signs are not shown to; NPO's"
            " optimizers did not forget equally, so theirs do not compare. Four bits recover"
            " nothing."
        ),
        verdict=optimizer_findings,
        published=(
            "Lang et al. (2510.00761): signs of gradients and gradient-free steps leave an attacker"
            " less than AdamW does."
        ),
        differs=f"{DATASET_DIFFERENCE} Tuned for gold at each optimizer, no gradient-free steps.",
    ),
)

HEAD = """# Findings

One page for each question. It begins with the answer; the numbers stand below it, negative ones
too. How to read intervals and controls: [what the numbers can and cannot say](explanation.md);
words: [glossary](glossary.md). All of it in one reading: [paper](paper.md). The dated log, with
what was tried on the way: `experiments/LOG.md`. Made by `make findings`.
"""

FOOT = (
    "Made by `make findings`; do not edit. [All findings](../findings.md) · [how to read"
    " them](../explanation.md) · [glossary](../glossary.md) · the dated log: `experiments/LOG.md`"
)


def main() -> None:
    """Write the pages below the folder of docs, and their pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"))
    parser.add_argument("docs", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--version", default="", help="of the runs (default: as parts.py has it)")
    chosen = parser.parse_args()
    pictures = chosen.docs / "pictures"
    pages = findings_pages(chosen.runs, pictures, docs=chosen.docs, version=chosen.version)
    (chosen.docs / "findings").mkdir(exist_ok=True)
    for name, text in pages.items():
        linkable = with_anchors(text) if name.startswith("findings/") else text
        (chosen.docs / name).write_text(linkable, encoding="utf-8")


if __name__ == "__main__":
    main()
