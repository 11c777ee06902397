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
from rayunlearn.reporting.formats import FORMATS, as_json, escape_html, markdown, write_as
from rayunlearn.reporting.html import page, write_report
from rayunlearn.reporting.summary import run_summary
from rayunlearn.storage.run import Run, open_run, write_run_table
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
    return open_run(synthetic.write_run(tmp_path_factory.mktemp("run")))


def test_the_first_page_answers_four_questions_with_numbers_of_the_table(run: Run) -> None:
    table = coreset_table(run)
    forgotten, left, sure, back = run_summary(run, table)
    assert (
        "200 documents" in forgotten.sentences[0]
        and "as low as forgetting needs to go" in forgotten.sentences[0]
    )
    assert left.table is not None and [row[0] for row in left.table.rows] == [
        "rmu + nll",
        "npo + nll",
    ]
    best = table.filter(pl.col("method") == "rmu + nll", pl.col("select.ratio") == 1).row(
        0, named=True
    )
    assert left.table.rows[0][2].startswith(f"{best['forgetting']:.2f} [")
    assert "mean over 2 to 3 repetitions" in sure.sentences[0] and any(
        "did not end as complete: 2." in s for s in sure.sentences
    )
    assert "No attack has been run" in back.sentences[0]


def test_a_run_that_has_only_begun_has_a_first_page(tmp_path: Path) -> None:
    write_run_table(tmp_path, "plan", [synthetic.plan_row("a", "grid", "{}")])
    opened = open_run(tmp_path)
    said = [section.sentences[0] for section in run_summary(opened, coreset_table(opened))]
    assert said[:2] == [
        "Nothing has been measured yet.",
        "No unlearned model has been measured yet.",
    ]


def test_json_is_json_and_holds_every_cell(run: Run) -> None:
    table, found = coreset_table(run), as_json(run)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["forgetting"] for row in found["cells"]] == [
        pytest.approx(v) if v is not None else None for v in table["forgetting"]
    ]
    assert found["provenance"]["commit"] == "abc123" and len(found["brief"]) == 4


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
    """In a real browser, without network: figures are drawn, no error is raised, and a header's
    click reorders its rows both ways.
    """
    text = write_report(run.path).read_text(encoding="utf-8")
    probe = """<script>
    const rows = () => [...document.querySelectorAll("#table tbody tr")];
    const cells = () => rows().map(row => row.cells[4].textContent);
    const head = document.querySelectorAll("#table thead th")[4];
    const button = head.querySelector("button");
    button.click(); const up = cells(); button.click(); const down = cells();
    const drawn = document.querySelectorAll(".plot .main-svg").length;
    const sort = head.getAttribute("aria-sort");
    document.title = JSON.stringify({up, down, drawn, sort, tab: button.tabIndex});
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
