"""docs/attacks.md, made from the tables: `python -m rayunlearn.attacks.documentation > docs/attacks.md`."""

import inspect

from rayunlearn.attacks.panel import ATTACKS
from rayunlearn.attacks.table import GIVEN, KINDS, Attack, given_names

HEAD = """# Attacks

Made from `rayunlearn/attacks` by `python -m rayunlearn.attacks.documentation`; a test holds the two together.

An attack asks whether what unlearning took away can be had back. It is a trial of its own; its rows stand in the same tables with
the attack's name in the column `attack`. The same attack always runs on base and on gold too: base shows how much the attack itself
harms an answer that is known, gold what it gives to a model that never knew. A companion is a further control that runs beside it.

What to bear in mind:

- **No prompt attack puts a word of the asked answer into the prompt.** Shots and sentences that hold one are left out. Where few
  answers are possible, leaving them out tells something by elimination; gold has the same shots.
- **A question that does not allow an attack is left out**, not asked as it was. So n may differ between attacks.
- **On the test bed the fixed texts are in the vocabulary, and were never trained on.** Long ones harm base itself. Measured once, on
  the tiny domain bed as commit caa9b96 teaches it (32 forget questions, one seed), share of right options, base (gold): as asked 1.00
  (0.28), one English filler sentence 1.00 (0.19), ten 0.66 (0.19), five retain shots 0.62 (0.16), three rounds of insistence 0.97
  (0.22), French 0.88 (0.25), the poem 0.28 (0.16). Read a low value after such an attack beside base's under the same attack.
- **Rephrasings** come from a file with the columns doc_id, condition and text, else from the test bed's templates, else from a chat
  model. A text that holds a word of the answer is refused; a chat model is asked three times.
- Prefixes and vectors are found on half of the facts and measured on the other half.
"""


def attacks_page() -> str:
    """The page as Markdown."""
    table = "| attack | kind | what it does | control | source |\n|---|---|---|---|---|\n"
    rows = "".join(_line(f"`{name}`", row.kind, row.title, row.control, row.source) for name, row in ATTACKS.items())
    kinds = "| kind | what its function is |\n|---|---|\n" + "".join(_line(name, meaning) for name, meaning in KINDS.items())
    given = "| name | what it is |\n|---|---|\n" + "".join(_line(f"`{name}`", meaning) for name, meaning in GIVEN.items())
    sections = "".join(_section(name, row) for name, row in ATTACKS.items())
    return "\n".join([HEAD, "## All of them\n", table + rows, "## Kinds\n", kinds, "## What attacks ask for\n", given, "## Definitions\n", sections])


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _section(name: str, row: Attack) -> str:
    options = [f"`{name}.{p.name}` = {p.default}" for p in inspect.signature(row.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    settings = f"\n\nSettings: {', '.join(options)}." if options else ""
    asks = ", ".join(f"`{n}`" for n in given_names(row))
    return f"**{name}**. {inspect.getdoc(row.function)}{settings} Asks for {asks}.\n\n"


if __name__ == "__main__":
    print(attacks_page().rstrip())
