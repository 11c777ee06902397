"""The contents of experiments/LOG.md: `python -m experiments.findings.log_contents` writes them.

An entry is a heading `## DATE · title` and, as its first paragraph, `**In short:** one sentence.`
The contents have a line for each, in the order of the entries; the entries are left as they are.
"""

import re
from dataclasses import dataclass
from pathlib import Path

LOG = Path(__file__).parents[1] / "LOG.md"
BEGIN, END = "<!-- contents -->\n", "<!-- end of contents -->\n"
# a line that begins with two hashes, its first paragraph after it
ENTRY = re.compile(r"^## (.+)\n+(.*)$", re.MULTILINE)
SHORT = re.compile(r"^\*\*In short:\*\* (.+\.)$")


@dataclass(frozen=True)
class Entry:
    """An entry's heading, and its verdict in one sentence ('' where the entry does not begin with
    one).
    """

    heading: str
    verdict: str

    @property
    def line(self) -> str:
        """Its line of the contents."""
        title = self.heading.split(": ")[0]
        return f"- [{title}](#{anchor(self.heading)}): {self.verdict}\n"


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, without punctuation, with hyphens.

    Example:
        >>> anchor("2026-11-30 · lasting.py: aimed")
        '2026-11-30--lastingpy-aimed'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entries(log: str) -> list[Entry]:
    """The entries of the log, in its order."""
    return [
        Entry(heading, short.group(1) if (short := SHORT.match(first)) else "")
        for heading, first in ENTRY.findall(log)
    ]


def with_contents(log: str) -> str:
    """The log with its contents as its entries say. Raises ValueError where the two marks around
    the contents are not there once each.
    """
    if log.count(BEGIN) != 1 or log.count(END) != 1:
        raise ValueError(f"LOG.md must have {BEGIN.strip()} and {END.strip()} once each")
    before, after = log.split(BEGIN)[0], log.split(END)[1]
    return before + BEGIN + "".join(entry.line for entry in entries(log)) + END + after


if __name__ == "__main__":
    LOG.write_text(with_contents(LOG.read_text(encoding="utf-8")), encoding="utf-8")
