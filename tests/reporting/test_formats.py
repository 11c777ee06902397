"""The report in four forms, and its first page: the same numbers, nothing of the run is markup, and
a browser can use it.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.cli.main import main
from rayunlearn.errors import UserError
from rayunlearn.reporting.formats import (
    FORMATS,
    as_json,
    escape_html,
    markdown,
    markdown_pdf,
    write_as,
)
from rayunlearn.reporting.html import page, write_report
from rayunlearn.reporting.summary import run_summary, summary_block
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table
from tests import synthetic

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(synthetic.write_run(tmp_path_factory.mktemp("run"))).in_memory()


def test_the_first_page_answers_its_questions_with_numbers_of_the_table(run: Run) -> None:
    table = coreset_table(run)
    forgotten, tested, left, back, sure, untested, outcome = run_summary(run, table)
    assert tested.sentences[0] == (
        "Unlearned with npo + nll and rmu + nll, on 100%, 25%, 5% and 1% of the forget set."
    )
    assert "30 questions of the retain set" in " ".join(tested.sentences)
    assert (
        "200 documents" in forgotten.sentences[0]
        and "as low as forgetting needs to go" in forgotten.sentences[0]
    )
    assert left.table is not None and [row[0] for row in left.table.rows] == [
        "base",
        "gold",
        "control: nll (npo)",
        "control: nll (rmu)",
        "rmu + nll",
        "npo + nll",
    ]
    best = table.filter(pl.col("method") == "rmu + nll", pl.col("select.ratio") == 1).row(
        0, named=True
    )
    assert left.table.rows[4][2].startswith(f"{best['forgetting']:.2f} [")
    assert "mean over 2 to 3 random seeds" in sure.sentences[0] and any(
        "did not end as complete: 2." in s for s in sure.sentences
    )
    assert "No attack has been run" in back.sentences[0]
    assert any("No attack was run" in s for s in untested.sentences)
    assert any("in other words" in s for s in untested.sentences)
    assert "no proof that it is gone" in untested.sentences[0]
    assert outcome.sentences[0] == (
        "Hypothesis: 25% is enough. Refuted if: the curves at 25% and 100% part."
    )
    # one of twelve was not measured
    compared, smallest = outcome.sentences[1:]
    assert compared.startswith("Of 11 parts of the forget set that were compared with all of it:")
    assert smallest.startswith("The smallest that is equal is 25% (50 documents): ")


def test_what_was_tested_is_not_listed_as_untested(tmp_path: Path) -> None:
    """A run with untouched questions says nothing of damage that nobody asked for, and names its
    losses where experiment.json has them explained.
    """
    values = {"forget": 0.5, "retain": 0.9, "untouched": 0.8}
    rows = []
    for stage in ("base", "gold", "unlearned"):
        trial = synthetic.add_trial(tmp_path, {"stage": stage}, values)
        rows.append(synthetic.plan_row(trial, "grid" if stage == "unlearned" else stage, "{}"))
    write_run_table(tmp_path, "plan", rows)
    npo = {
        "setting": "method.forget",
        "name": "npo",
        "meaning": "negative preference",
        "source": "Z",
    }
    unused = npo | {"name": "rmu"}
    write_experiment(tmp_path, synthetic.EXPERIMENT | {"names": [npo, unused]})
    opened = open_run(tmp_path).in_memory()
    table = coreset_table(opened)
    untested = summary_block(opened, table, "untested")
    assert not any("no training was shown" in sentence for sentence in untested.sentences)
    tested = summary_block(opened, table, "tested")
    assert "npo: negative preference (Z)." in tested.sentences
    assert not any(sentence.startswith("rmu") for sentence in tested.sentences)
    assert "no training was shown (untouched)" in " ".join(tested.sentences)


def test_a_run_that_has_only_begun_has_a_first_page(tmp_path: Path) -> None:
    write_run_table(tmp_path, "plan", [synthetic.plan_row("a", "grid", "{}")])
    opened = open_run(tmp_path).in_memory()
    said = [section.sentences[0] for section in run_summary(opened, coreset_table(opened))]
    assert said[:3] == [
        "Nothing has been measured yet.",
        "No unlearned model has been trained yet.",
        "No unlearned model has been measured yet.",
    ]


def test_json_is_json_and_holds_every_cell(run: Run) -> None:
    table, found = coreset_table(run), as_json(run)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["forgetting"] for row in found["cells"]] == [
        pytest.approx(v) if v is not None else None for v in table["forgetting"]
    ]
    assert found["provenance"]["commit"] == "abc123" and len(found["brief"]) == 7


def test_markdown_has_every_table_and_no_markup_of_the_run_s(run: Run) -> None:
    text = markdown(run)
    assert "<script>" not in text and r"\<script\>alert(1)\</script\>" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows[:4]}
    assert len(widths) == 1 and len(rows) > coreset_table(run).height
    assert escape_html("a|b_c") == r"a\|b\_c"


def test_pdf_opens_as_one_and_holds_the_words(run: Run) -> None:
    pytest.importorskip("fpdf", reason="the extra `pdf` is not installed")
    content = write_as(run.path, "pdf").read_bytes()
    assert (
        content.startswith(b"%PDF-")
        and content.rstrip().endswith(b"%%EOF")
        and len(content) > 10_000
    )


def test_a_paper_as_pdf_has_its_words_and_no_marks_of_markdown() -> None:
    """Uncompressed, a page's text stands in the file as glyphs; so what is written is caught."""
    pytest.importorskip("fpdf", reason="the extra `pdf` is not installed")
    from fpdf import FPDF

    written: list[str] = []
    cell = FPDF.multi_cell

    def caught(self: FPDF, w: float, h: float, text: str, **options: object) -> object:
        written.append(text)
        return cell(self, w, h, text, **options)

    text = (
        "# A title\n\nRMU leaves\n[0.02 [0.006, 0.04]](findings/a.md#row-1), **first**.\n\n"
        "- one [page](b.md)\n- two\n\n| a | b |\n|---|---|\n| x | 1 |"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FPDF, "multi_cell", caught)
        assert markdown_pdf(text).startswith(b"%PDF-")
    assert written[:4] == [
        "A title",
        "RMU leaves 0.02 [0.006, 0.04], first.",
        "\u2022 one page",
        "\u2022 two",
    ]
    assert not any("](" in words or "**" in words for words in written)


def test_pdf_without_its_libraries_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fpdf", None)
    with pytest.raises(UserError, match=r"needs the extra `pdf`: pip install 'rayunlearn\[pdf\]'"):
        write_as(run.path, "pdf")


def test_the_command_writes_beside_the_tables_and_says_where(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run.path), "--format", "md"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == run.path / "report.md" and path.read_text(encoding="utf-8") == markdown(run)
    assert main(["report", str(run.path), "--format", "docx"]) == 2
    assert "unknown --format 'docx'" in capsys.readouterr().err and set(FORMATS) == {
        "html",
        "md",
        "json",
        "pdf",
    }


def test_the_page_begins_with_the_answers(run: Run) -> None:
    text = page(run)
    assert text.index('id="brief"') < text.index('id="findings"') < text.index('id="table"')


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_the_figures_and_sorts_the_tables(run: Run, tmp_path: Path) -> None:
    """In a real browser, without network: figures are drawn, nothing is wider than the window, and
    a header's click reorders its rows both ways.
    """
    text = write_report(run.path).read_text(encoding="utf-8")
    probe = """<script>
    const table = document.querySelector("#table table");
    const rows = () => [...table.tBodies[0].rows];
    const cells = () => rows().map(row => row.cells[3].textContent);
    const head = table.tHead.rows[0].cells[3];
    const button = head.querySelector("button");
    button.click(); const up = cells(); button.click(); const down = cells();
    const drawn = [...document.querySelectorAll("figure svg")].filter(
      svg => svg.getBoundingClientRect().width > 200).length;
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    const sort = head.getAttribute("aria-sort");
    document.title = JSON.stringify({up, down, drawn, wide, sort, tab: button.tabIndex});
    </script></body>"""
    copy = tmp_path / "probed.html"
    copy.write_text(text.replace("</body>", probe), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        copy.as_uri(),
    ]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    ).stdout
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None
    seen = json.loads(title[1].replace("&quot;", '"'))
    numbers = [
        [float(cell.split()[0]) for cell in seen[way] if cell[0].isdigit()]
        for way in ("up", "down")
    ]
    assert (
        numbers[0] == sorted(numbers[0])
        and numbers[1] == sorted(numbers[1], reverse=True)
        and len(numbers[0]) > 10
    )
    assert seen["sort"] == "descending" and seen["tab"] == 0 and seen["drawn"] >= 5
    assert seen["wide"] <= 0
