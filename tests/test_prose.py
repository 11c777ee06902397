"""What is shown to people uses the field's words: no page, docstring or printed sentence has the
private words of earlier versions, figures have a leading zero, and per cent stands at its number.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.findings.log_contents import LOG, anchor, entries, with_contents

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Private wording -> what to say.
PRIVATE = {
    r"(test )?beds?": "synthetic dataset",
    r"foretells?|foretold": "predicts, predicted",
    r"mixed back": "interpolated towards the base model",
    r"(share )?of the way (from base|to gold)|share of the way": "fraction of the base-gold gap",
    r"its fate|fates?": "status",
    r"untaught|taught": "trained, fine-tuned",
    r"lessons?": "training",
    r"(set|sets|setting) aside": "rejected",
    r"told apart": "significantly different, distinguished",
    r"(gave|got|had|brought|brings?) (it |them |answers )?back": "recovers",
    r"hungriest": "largest",
    r"(was|is|are) looked at every|looked at every": "evaluated every",
    r"one's own": "your own",
    r"in the place of": "instead of",
    r"made again": "rebuilt, reproduced",
    r"whole (forget )?set": "full forget set",
    r"nought": "zero",
    r"nobody (looks at|looked)": "not measured",
    r"goes? on with:": "resume with:",
    r"never knew": "gold model",
    r"text arms?": "text ablation",
    r"that much is not": "say whose effect it is",
    r"(do|does|did) what (the|a) (full|whole) (forget )?set does": "is equivalent to",
    r"only not said": "suppressed",
    r"made elsewhere": "external",
    r"read it so": "how to read",
    r"as many random words": "the same number of random words",
    r"a rung, not a result": "used for early stopping only",
}
WORDS = re.compile(rf"\b({'|'.join(PRIVATE)})(?!\w)", re.IGNORECASE)
# 33 % with a blank, .07 without its zero
FIGURES = re.compile(r"(?<=\d) %(?=[^\w{(%]|$)|(?<![\w.\d)\]}/\\])\.\d+(?![\w.%]*[a-zA-Z_(%])")
# Corpora and prompts are data, not prose of ours; recipes quote their sources.
DATA = {
    "data/prompt_templates.py",
    "data/unrelated_text.py",
    "keywords/stopwords.py",
    "recipes.py",
}
# Headings that the synthetic corpus is made of.
CORPUS_SENTENCES = {"A short lesson."}
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# Names in the code of a page or string are not its prose: `taught.json`, `--set model.teach=false`.
CODE = re.compile(r"`[^`\n]*`|\{[^{}]*\}")


# a comment in a fenced block, behind its two blanks or alone in its line
COMMENT = re.compile(r"(?:^|  )# (.*)$", re.MULTILINE)


def complaints(prose: str) -> list[str]:
    """Private wordings and figures without zero or with a blank before % in a piece of prose."""
    plain = re.sub(r"\s+", " ", CODE.sub("`", prose))
    return [
        f"{hit.group()!r} in {plain[max(0, hit.start() - 40) : hit.end() + 20]!r}"
        for pattern in (WORDS, FIGURES)
        for hit in pattern.finditer(plain)
    ]


def strings_of(source: str) -> Iterator[str]:
    """Docstrings and texts of a module, with literals that stand beside each other as one; what
    has no blank is a name, not prose.
    """
    for node in ast.walk(ast.parse(source)):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        if " " in text and text not in CORPUS_SENTENCES:
            yield text


def prose_files() -> list[Path]:
    """Modules whose strings and docstrings are shown to people."""
    package = ROOT / "rayunlearn"
    return sorted(
        file
        for file in [*package.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
        if file.is_relative_to(ROOT / "experiments") or str(file.relative_to(package)) not in DATA
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_uses_the_words_of_the_field(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    comments = [line for block in FENCE.findall(text) for line in COMMENT.findall(block)]
    assert complaints(FENCE.sub("", text)) == []
    assert [hit for line in comments for hit in complaints(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_leads_to_the_glossary(page: Path) -> None:
    """A line at its end will do: `Words: [glossary](glossary.md).`"""
    is_it = page.name in ("glossary.md", "CONTRIBUTING.md")
    assert is_it or "glossary.md)" in page.read_text(encoding="utf-8")


def test_the_readme_is_short_and_fits_a_screen_and_a_phone() -> None:
    """700 words outside code, counted as `wc -w` does; one table; 100 columns but for a picture."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = FENCE.findall(text)
    prose = FENCE.sub("", text)
    assert len(prose.split()) <= 700
    assert [line for line in text.splitlines() if len(line) > 100 and line[:2] != "!["] == []
    assert code and all(block.count("\n") <= 24 for block in code)
    (table,) = re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE)
    assert table.splitlines()[0].count("|") - 1 <= 6
    assert prose.count("](docs/pictures/") == 1
    terms = ("forget set", "retain set", "coreset", "base", "gold", "control")
    first = [prose.index(f"**{term}**") for term in terms]
    assert max(first) < prose.index("## One command") < prose.index(table)


def test_docstrings_and_printed_sentences_use_the_words_of_the_field() -> None:
    wrong = {
        str(file.relative_to(ROOT)): hits
        for file in prose_files()
        if (
            hits := [
                hit
                for text in strings_of(file.read_text(encoding="utf-8"))
                for hit in complaints(text)
            ]
        )
    }
    assert wrong == {}


def test_the_templates_of_pages_use_the_words_of_the_field() -> None:
    for file in (ROOT / "rayunlearn").rglob("*.j2"):
        body = file.read_text(encoding="utf-8").partition("</style>")[2].partition("<script")[0]
        assert complaints(re.sub(r"\{[{%].*?[%}]\}", "{}", body)) == []


def test_the_pictures_use_the_words_of_the_field() -> None:
    for file in (ROOT / "docs" / "pictures").glob("*.svg"):
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", file.read_text(encoding="utf-8"))
        assert texts and [hit for text in texts for hit in complaints(text)] == [], file.name


def test_the_check_finds_what_it_looks_for() -> None:
    for prose in (
        "The gold model foretells it.",
        "an untaught test bed",
        "is not told\n    apart",
        "33 % of them",
        "within .07",
        "a part that does what the full set does",
        "gone, or only not said",
    ):
        assert complaints(prose), prose
    assert complaints("33% of them, within 0.07, `model.teach`, `taught.json`, v2.5") == []
    assert complaints(next(strings_of('x = "not told" " apart"'))) != []


def test_every_entry_of_the_log_begins_with_its_verdict_in_one_plain_sentence() -> None:
    """`**In short:** one sentence.` is the first paragraph below the heading."""
    for entry in entries(LOG.read_text(encoding="utf-8")):
        assert re.match(r"\d{4}-\d\d-\d\d · ", entry.heading), entry.heading
        rule = f"the first paragraph must be '**In short:** one sentence.' below {entry.heading!r}"
        assert entry.verdict, rule
        assert len(entry.verdict.split()) <= 40, f"at most 40 words: {entry.verdict!r}"
        assert complaints(entry.verdict) == []


def test_the_contents_of_the_log_are_its_entries() -> None:
    log = LOG.read_text(encoding="utf-8")
    assert len({anchor(entry.heading) for entry in entries(log)}) == log.count("\n## ")
    hint = "write them: python -m experiments.findings.log_contents"
    assert log == with_contents(log), hint


def test_contents_are_written_from_headings_and_first_sentences() -> None:
    log = "# Log\n\n<!-- contents -->\nold\n<!-- end of contents -->\n\n## 2026-01-02 · a.py: b\n"
    assert entries(log + "\nTried: c.\n")[0].verdict == ""
    written = with_contents(log + "\n**In short:** It is so.\n\nTried: c.\n")
    assert "\n- [2026-01-02 · a.py](#2026-01-02--apy-b): It is so.\n<!-- end" in written
    assert "old" not in written and written.endswith("Tried: c.\n")
