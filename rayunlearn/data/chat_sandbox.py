"""A chat template tried where it can do no harm: in a process of its own, bounded in time, memory
and what it writes, with no file, no network and no variable of the environment.

Templates are programs that come with a model (Jinja). transformers renders them in Jinja's sandbox,
which keeps them from Python's insides but bounds neither time nor memory: `{{ 9**(9**9) }}` ends
never. This file is also the program that the process runs; it imports Jinja and nothing of ours.
"""

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from typing import Any

CPU_SECONDS = 5
# on a busy machine a process may wait long for its seconds
WALL_SECONDS = 60
MEMORY_BYTES = 2**30
MOST_CHARACTERS = 100_000
# The day that a template is told when it asks for today: its token ids must not follow the
# calendar. (What Llama 3.1's own template falls back to.)
DAY = date(2024, 7, 26)
DATE_FORMS = re.compile(r"""strftime_now\(\s*(['"])([^'"{}]*)\1""")

Turns = Sequence[dict[str, str]]


def template_fault(
    template: str, special_tokens: dict[str, str], conversations: Sequence[tuple[Turns, bool]]
) -> str:
    """What is wrong with a template that is to write the conversations (turns, whether the next
    answer is opened), '' for nothing: an error of its own, more than 5 seconds of CPU, 1 GiB or
    100,000 characters, or another text at every call.
    """
    request = {
        "path": sys.path,
        "template": template,
        "special": special_tokens,
        "conversations": [[list(turns), opens] for turns, opens in conversations],
        "cpu_seconds": CPU_SECONDS,
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env={},
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it must end within {WALL_SECONDS} seconds"
    if ended.returncode != 0:
        return f"it must end within {CPU_SECONDS} seconds of CPU and {MEMORY_BYTES >> 30} GiB"
    return str(json.loads(ended.stdout))


def main() -> None:
    """Read a request from stdin and write what is wrong as a JSON text."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    _bound_resources(request["cpu_seconds"])
    try:
        fault = _first_fault(request)
    except RecursionError:
        fault = "it must not nest as deep as Python's recursion allows"
    except MemoryError:
        fault = f"it must take at most {MEMORY_BYTES >> 30} GiB"
    # a template raises what it likes
    except Exception as problem:
        fault = f"{type(problem).__name__}: {problem}"[:500]
    print(json.dumps(fault))


def _bound_resources(cpu_seconds: int) -> None:
    # not on every system, and only this process needs it
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _first_fault(request: dict[str, Any]) -> str:
    template = _environment().from_string(with_fixed_day(request["template"]))
    for turns, opens in request["conversations"]:
        values = {**request["special"], "messages": turns, "add_generation_prompt": opens}
        texts = []
        for seed in (1, 2, 3):
            # a template that draws must show it
            random.seed(seed)
            texts.append(template.render(**values, tools=None, documents=None))
        if max(map(len, texts)) > MOST_CHARACTERS:
            return f"it must write at most {MOST_CHARACTERS} characters, got {len(texts[0])}"
        if len(set(texts)) > 1:
            return "it must write the same text at every call"
    return ""


def _environment() -> Any:
    """Jinja's sandbox with what transformers gives to chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `{% generation %}`, which only marks what an assistant wrote."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def with_fixed_day(template: str) -> str:
    """The template, told the same day whenever it asks for today (`strftime_now`)."""
    if "strftime_now" not in template:
        return template
    forms = sorted({form for _, form in DATE_FORMS.findall(template)})
    days = "".join(f"{{% elif form == {form!r} %}}{DAY.strftime(form)}" for form in forms)
    macro = f"{{% if false %}}{days}{{% else %}}{DAY.isoformat()}{{% endif %}}"
    # an expression after the macro, because a block would take the template's first line break
    return f"{{% macro strftime_now(form) %}}{macro}{{% endmacro %}}{{{{ '' }}}}{template}"


if __name__ == "__main__":
    main()
