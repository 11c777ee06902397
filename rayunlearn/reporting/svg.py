"""A Plotly figure as still pictures, one SVG per panel: a page shows them without a script, prints
them uncut, and sets them beside or under each other as its width allows.

What of Plotly is drawn: scatter traces (lines, dashes, steps, symbols, error bars), heat maps, and
linear or logarithmic axes. Text has the colours of the page by the classes `ink` and `soft`, and
grid lines by `rule`; the attributes beside them are for a reader that knows no classes (the PDF).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

# units of a panel: on a phone of 400 px text of 13 units is 11 px high, on a desktop three panels
# stand side by side
WIDTH, HEIGHT = 420, 300
FONT_SIZE = 13
# mean width of a character of a sans-serif font, in font sizes
CHARACTER = 0.56

INK, SOFT, RULE = "#1b1f24", "#57606a", "#d5dae0"

DASH_LENGTHS = {
    "solid": "",
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "12 4",
    "longdashdot": "12 3 2 3",
}

# corners of the symbols in a square from -1 to 1
CORNERS: Mapping[str, Sequence[tuple[float, float]]] = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    "triangle-up": ((0, -1.1), (1.1, 0.8), (-1.1, 0.8)),
    "triangle-down": ((0, 1.1), (1.1, -0.8), (-1.1, -0.8)),
    "star-triangle-down": ((0, 1.1), (1.1, -0.8), (-1.1, -0.8)),
    "star": tuple(
        (
            (1.25 if i % 2 == 0 else 0.55) * math.sin(i * math.pi / 5),
            -(1.25 if i % 2 == 0 else 0.55) * math.cos(i * math.pi / 5),
        )
        for i in range(10)
    ),
    "cross": (
        (-0.35, -1.05),
        (0.35, -1.05),
        (0.35, -0.35),
        (1.05, -0.35),
        (1.05, 0.35),
        (0.35, 0.35),
        (0.35, 1.05),
        (-0.35, 1.05),
        (-0.35, 0.35),
        (-1.05, 0.35),
        (-1.05, -0.35),
        (-0.35, -0.35),
    ),
}

# points of a line whose values a text alternative lists; of a longer one it says both ends
LISTED_POINTS = 8
# columns of a heat map that a panel is wide enough for
MAP_COLUMNS = 8
# characters of a column's name that fit above its cells
SHORT_COLUMN = 4


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture: its title, its SVG, its height beside a width of `WIDTH`, and its content in
    words.
    """

    title: str
    svg: str
    words: str
    height: float = HEIGHT


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """A name and how its line and symbol look, as a small SVG."""

    name: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure: its panels in reading order, and the legend that they share."""

    panels: tuple[Picture, ...]
    legend: tuple[LegendEntry, ...]


def draw(figure: go.Figure, *, name: str, title: str = "") -> Drawing:
    """Draw every panel of a figure.

    Args:
        figure: a figure of `reporting.plots`.
        name: beginning of the ids in the pictures, unique on the page.
        title: title of a panel that has none of its own.

    Returns:
        The pictures and their legend.

    Example:
        >>> import plotly.graph_objects as go
        >>> figure = go.Figure(go.Scatter(x=[0, 1], y=[0.2, 0.4], name="npo"))
        >>> draw(figure, name="demo").panels[0].words
        'npo: 0 is 0.2, 1 is 0.4.'
    """
    if any(trace.type == "heatmap" for trace in figure.data):
        return Drawing(panels=tuple(_maps(figure, name, title)), legend=())
    pairs = sorted({(_number(trace.xaxis), _number(trace.yaxis)) for trace in figure.data})
    titles = [note.text.replace("<br>", ", ") for note in figure.layout.annotations]
    panels = []
    for index, (x_number, y_number) in enumerate(pairs):
        traces = [
            t for t in figure.data if (_number(t.xaxis), _number(t.yaxis)) == (x_number, y_number)
        ]
        panel_title = titles[x_number - 1] if x_number <= len(titles) else title
        axes = _Axes(
            x=_axis(figure, "x", x_number), y=_axis(figure, "y", y_number), title=panel_title
        )
        panels.append(_panel(traces, axes, f"{name}-{index}"))
    return Drawing(panels=tuple(panels), legend=tuple(_legend(figure)))


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis: its title, the ends of what it shows, its ticks (value, text), and whether it is
    logarithmic.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        low, high, position = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        return (position - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class _Axes:
    x: _Axis
    y: _Axis
    title: str

    @property
    def left(self) -> float:
        longest = max((len(text) for _, text in self.y.ticks), default=1)
        return 12 + FONT_SIZE * (1.4 if self.y.title else 0) + longest * FONT_SIZE * CHARACTER

    @property
    def top(self) -> float:
        return 8 + 1.3 * FONT_SIZE * len(_wrapped(self.title, WIDTH - 12))

    @property
    def bottom(self) -> float:
        return HEIGHT - (FONT_SIZE * (3.2 if self.x.title else 1.7))

    def x_at(self, value: float) -> float:
        return self.left + self.x.share(value) * (WIDTH - 14 - self.left)

    def y_at(self, value: float) -> float:
        return self.bottom - self.y.share(value) * (self.bottom - self.top)


def _number(reference: str | None) -> int:
    """`x` and nothing are axis 1, `x2` is axis 2."""
    return int((reference or "x")[1:] or 1)


def _axis(figure: go.Figure, letter: str, number: int) -> _Axis:
    """An axis as the layout has it, over the data of all panels that it is shared with."""
    layouts = {
        int(key.removeprefix(f"{letter}axis") or 1): figure.layout[key]
        for key in figure.layout
        if key.startswith(f"{letter}axis")
    }
    layout = layouts[number]
    shared = [n for n, other in layouts.items() if _root(other, n) == _root(layout, number)]
    values = [
        value
        for trace in figure.data
        if _number(trace[f"{letter}axis"]) in shared
        for value in _values(trace, letter)
    ]
    is_log = layout.type == "log"
    low, high = _ends(values, is_log=is_log)
    if layout.range is not None:
        low, high = (float(end) for end in layout.range)
    titles = [layout.title.text, *(layouts[n].title.text for n in sorted(layouts))]
    if layout.tickvals is not None:
        ticks = list(zip(layout.tickvals, layout.ticktext, strict=True))
    else:
        ticks = [
            (value, _tick_text(value, layout.tickformat)) for value in _ticks(low, high, layout)
        ]
    return _Axis(
        title=next((text for text in titles if text), ""),
        low=low,
        high=high,
        ticks=ticks,
        is_log=is_log,
    )


def _root(layout: Any, number: int) -> int:
    """The axis whose scale this one shares."""
    return _number(layout.matches) if layout.matches else number


def _values(trace: Any, letter: str) -> list[float]:
    """Numbers of a trace along an axis, with the ends of its error bars."""
    values = [v for v in (trace[letter] if trace[letter] is not None else ()) if _is_number(v)]
    if letter == "y" and trace.error_y.array is not None:
        for value, up, down in zip(
            trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True
        ):
            if all(_is_number(number) for number in (value, up, down)):
                values += [value + up, value - down]
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _ends(values: Sequence[float], *, is_log: bool) -> tuple[float, float]:
    """The data's ends with some room; one value alone has room on both sides."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if is_log:
        return low / 1.25, high * 1.25
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _ticks(low: float, high: float, layout: Any) -> list[float]:
    """Four to seven round values from `low` to `high`; whole ones where the axis counts."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if layout.tickformat == "d":
        step = max(1.0, step)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _tick_text(value: float, style: str | None) -> str:
    return f"{100 * value:.0f}%" if style == ".0%" else f"{value:,.10g}"


def _panel(traces: Sequence[Any], axes: _Axes, name: str) -> Picture:
    """Frame, ticks, lines, then symbols over them."""
    words = " ".join(filter(None, (_trace_words(trace, axes) for trace in traces)))
    parts = [*_frame(axes)]
    for trace in traces:
        parts += _lines(trace, axes)
    for trace in traces:
        parts += _marks(trace, axes)
    return Picture(
        title=axes.title,
        svg=_picture(name, axes.title or axes.y.title, words, parts, HEIGHT),
        words=words,
    )


def _picture(name: str, title: str, words: str, parts: Sequence[str], height: float) -> str:
    """An SVG with a title and its content in words, for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {_short(height)}" role="img"'
        f' aria-labelledby="{name}-t {name}-d"'
        f' xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="{FONT_SIZE}">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(words)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _frame(axes: _Axes) -> list[str]:
    """Title, grid lines, tick labels that do not touch each other, and the axis titles."""
    right, middle = WIDTH - 14, (axes.top + axes.bottom) / 2
    lines = _wrapped(axes.title, WIDTH - 12)
    parts = [
        _text(line, 6, 14 + 1.3 * FONT_SIZE * row, weight="600") for row, line in enumerate(lines)
    ]
    for value, text in axes.y.ticks:
        if 0 <= axes.y.share(value) <= 1:
            y = axes.y_at(value)
            parts.append(_rule(axes.left, y, right, y))
            parts.append(_text(text, axes.left - 6, y + 4.5, anchor="end", colour=SOFT))
    occupied = -math.inf
    for value, text in axes.x.ticks:
        half = len(text) * FONT_SIZE * CHARACTER / 2
        if not 0 <= axes.x.share(value) <= 1:
            continue
        x = axes.x_at(value)
        parts.append(_rule(x, axes.top, x, axes.bottom))
        centre = min(x, WIDTH - 2 - half)
        if centre - half > occupied + 4:
            parts.append(
                _text(text, centre, axes.bottom + 1.3 * FONT_SIZE, anchor="middle", colour=SOFT)
            )
            occupied = centre + half
    parts.append(_rule(axes.left, axes.bottom, right, axes.bottom, strong=True))
    parts.append(_rule(axes.left, axes.top, axes.left, axes.bottom, strong=True))
    if axes.x.title:
        centre = (axes.left + right) / 2
        parts.append(_text(axes.x.title, centre, HEIGHT - 5, anchor="middle"))
    if axes.y.title:
        turned = f' transform="rotate(-90 12 {_short(middle)})"'
        parts.append(_text(axes.y.title, 12, middle, anchor="middle", more=turned))
    return parts


def _lines(trace: Any, axes: _Axes) -> list[str]:
    """The line of a trace and its error bars."""
    parts, line = [], trace.line
    colour = line.color or trace.marker.color or SOFT
    if "lines" in (trace.mode or "lines"):
        path = _path(trace, axes)
        dash = DASH_LENGTHS.get(line.dash or "solid", "")
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        if path:
            parts.append(
                f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{line.width or 2}"'
                f"{dashed}><title>{escape(trace.name or '')}</title></path>"
            )
    if trace.error_y.array is not None:
        bars = "".join(
            f"M{_short(axes.x_at(x))} {_short(axes.y_at(y - down))}V{_short(axes.y_at(y + up))}"
            for x, y, up, down in zip(
                trace.x, trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True
            )
            if all(_is_number(value) for value in (x, y, up, down))
        )
        parts.append(f'<path d="{bars}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    return parts


def _path(trace: Any, axes: _Axes) -> str:
    """The line from point to point, in steps where the trace has them; a gap where a value is
    missing.
    """
    path, is_pen_down, before = "", False, 0.0
    for x, y in zip(trace.x or (), trace.y or (), strict=True):
        if not (_is_number(x) and _is_number(y)):
            is_pen_down = False
            continue
        to_x, to_y = axes.x_at(x), axes.y_at(y)
        if is_pen_down and trace.line.shape == "hv":
            path += f"L{_short(to_x)} {_short(before)}"
        path += f"{'L' if is_pen_down else 'M'}{_short(to_x)} {_short(to_y)}"
        is_pen_down, before = True, to_y
    return path


def _marks(trace: Any, axes: _Axes) -> list[str]:
    """The symbols of a trace, each with what it stands for where the pointer rests."""
    if "markers" not in (trace.mode or "lines"):
        return []
    colour, size = trace.marker.color or trace.line.color or SOFT, (trace.marker.size or 8) / 2
    texts = trace.text if trace.text is not None else [""] * len(trace.x or ())
    parts = []
    for x, y, text in zip(trace.x or (), trace.y or (), texts, strict=True):
        if _is_number(x) and _is_number(y):
            shape = symbol(
                trace.marker.symbol or "circle", axes.x_at(x), axes.y_at(y), size, colour
            )
            lines = [trace.name or "", *(text or f"{x:.4g}: {y:.4g}").split("<br>")]
            parts.append(
                f"<g><title>{escape(chr(10).join(filter(None, lines)))}</title>{shape}</g>"
            )
    return parts


def symbol(name: str, x: float, y: float, size: float, colour: str) -> str:
    """A symbol of Plotly's by its name, `-open` ones hollow, around a point."""
    bare, is_open = name.removesuffix("-open"), name.endswith("-open")
    paint = (
        f'fill="none" stroke="{colour}" stroke-width="1.6"'
        if is_open or bare.startswith("x")
        else f'fill="{colour}"'
    )
    if bare.startswith("x"):
        s = size * 0.8
        path = f"M{_short(x - s)} {_short(y - s)}l{_short(2 * s)} {_short(2 * s)}"
        path += f"m0 {_short(-2 * s)}l{_short(-2 * s)} {_short(2 * s)}"
        return f'<path d="{path}" {paint}/>'
    if bare not in CORNERS:
        return f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{_short(size)}" {paint}/>'
    points = " ".join(
        f"{_short(x + dx * size)},{_short(y + dy * size)}" for dx, dy in CORNERS[bare]
    )
    return f'<polygon points="{points}" {paint}/>'


def _legend(figure: go.Figure) -> list[LegendEntry]:
    """A swatch for every name that the figure shows, once each."""
    entries: dict[str, LegendEntry] = {}
    for trace in figure.data:
        if not trace.name or trace.showlegend is False or trace.name in entries:
            continue
        colour, mode = trace.marker.color or trace.line.color or SOFT, trace.mode or "lines"
        mark = ""
        if "markers" in mode:
            mark = symbol(trace.marker.symbol or "circle", 17, 7, 4.5, colour)
        width = 2.0 if "lines" in mode else 0.0
        dash = DASH_LENGTHS.get(trace.line.dash or "solid", "")
        sample = swatch(trace.line.color or colour, width, dash, mark=mark)
        entries[trace.name] = LegendEntry(name=trace.name, svg=sample)
    return list(entries.values())


def _trace_words(trace: Any, axes: _Axes) -> str:
    """`npo: 1% is 0.9, 25% is 0.5.`; of many points their number and range."""
    ticks = dict(axes.x.ticks)
    points = [
        (x, y)
        for x, y in zip(trace.x or (), trace.y or (), strict=True)
        if _is_number(x) and _is_number(y)
    ]
    if not points or not trace.name:
        return ""
    if len({y for _, y in points}) == 1 and trace.mode == "lines":
        return f"{trace.name}: {points[0][1]:.3g} throughout."
    if len(points) <= LISTED_POINTS:
        listed = ", ".join(f"{ticks.get(x, f'{x:.3g}')} is {y:.3g}" for x, y in points)
        return f"{trace.name}: {listed}."
    if "lines" in (trace.mode or "lines"):
        (first, start), (last, end) = points[0], points[-1]
        return f"{trace.name}: {start:.3g} at {first:.3g}, {end:.3g} at {last:.3g}."
    ends = [f"{min(part):.3g} to {max(part):.3g}" for part in zip(*points, strict=True)]
    return f"{trace.name}: {len(points)} points, across {ends[0]}, up {ends[1]}."


def _maps(figure: go.Figure, name: str, title: str) -> list[Picture]:
    """Heat maps, `MAP_COLUMNS` columns a panel: the name of each row above its cells, that of a
    column above all where every one is short, else numbers there and the names below. Of several
    maps each has its title.
    """
    titles = [note.text for note in figure.layout.annotations]
    is_titled = len(titles) == len(figure.data)
    if not is_titled:
        titles = [title] * len(figure.data)
    return [
        _map(
            list(trace.x[start : start + MAP_COLUMNS]),
            [
                (label, row[start : start + MAP_COLUMNS])
                for label, row in zip(trace.y, trace.z, strict=True)
            ],
            trace,
            f"{name}-{number}-{start}" if number else f"{name}-{start}",
            titles[number],
            heading=titles[number] if is_titled else "",
            first=start + 1,
        )
        for number, trace in enumerate(figure.data)
        for start in range(0, len(trace.x), MAP_COLUMNS)
    ]


def _map(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    trace: Any,
    name: str,
    title: str,
    *,
    heading: str,
    first: int,
) -> Picture:
    side, line = (WIDTH - 8) / MAP_COLUMNS, 1.4 * FONT_SIZE
    numbers = [str(first + offset) for offset, _ in enumerate(columns)]
    is_short = all(len(column) <= SHORT_COLUMN for column in columns)
    parts, y = _map_head(heading, columns if is_short else numbers, side, line)
    words = []
    for label, values in rows:
        for text in _wrapped(label, WIDTH - 8):
            y += line
            parts.append(_text(text, 4, y, colour=SOFT))
        for offset, value in enumerate(values):
            if value is not None and value == value:
                parts.append(_map_cell(value, 4 + side * offset, y + 5, side, trace))
        y += 5 + 22
        words.append(_map_row_in_words(label, columns, values))
    y += 6
    for number, column in [] if is_short else zip(numbers, columns, strict=True):
        for row, text in enumerate(_wrapped(f"{number}: {column}", WIDTH - 8)):
            y += line
            parts.append(_text(text, 4 + 12 * (row > 0), y))
    sentence = " ".join(words)
    svg = _picture(name, title, sentence, parts, y + 8)
    return Picture(title=title, svg=svg, words=sentence, height=y + 8)


def _map_head(
    heading: str, columns: Sequence[str], side: float, line: float
) -> tuple[list[str], float]:
    """Title and column heads of a heat map, and how far down they reach."""
    parts, y = [], 0.0
    for text in _wrapped(heading, WIDTH - 8):
        y += line
        parts.append(_text(text, 4, y, weight="600"))
    y += line
    for offset, column in enumerate(columns):
        parts.append(_text(column, 4 + side * (offset + 0.5), y, anchor="middle"))
    return parts, y


def _map_row_in_words(label: str, columns: Sequence[str], values: Sequence[float | None]) -> str:
    listed_values = ", ".join(
        f"{column} {value:.2f}"
        for column, value in zip(columns, values, strict=True)
        if value is not None
    )
    return f"{label}: {listed_values or 'nothing'}."


def _map_cell(value: float, x: float, y: float, side: float, trace: Any) -> str:
    """A coloured cell with its number, in black or white, whichever is read better."""
    low, high = _ends_of(trace)
    share = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5
    (colour,) = sample_colorscale("Cividis", [share], colortype="tuple")
    ink = max(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), key=lambda other: contrast(other, colour))
    red, green, blue = (round(255 * part) for part in colour)
    return (
        f'<rect x="{_short(x)}" y="{_short(y)}" width="{_short(side - 2)}" height="20"'
        f' fill="rgb({red},{green},{blue})"/>'
        f'<text x="{_short(x + side / 2 - 1)}" y="{_short(y + 14.5)}" text-anchor="middle"'
        f' fill="{"#ffffff" if ink[0] else "#000000"}">{value:.2f}</text>'
    )


def _ends_of(trace: Any) -> tuple[float, float]:
    """The values of the first and the last colour: the map's own range where it names none."""
    if trace.zmin is not None:
        return float(trace.zmin), float(trace.zmax)
    values = [value for row in trace.z for value in row if value is not None and value == value]
    return min(values), max(values)


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """Contrast of two colours, (red, green, blue) in [0, 1], from 1 to 21 (WCAG 2.2, contrast
    ratio).

    Example:
        >>> contrast((0, 0, 0), (1, 1, 1))
        21.0
    """
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = (_linear(part) for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    """A channel of sRGB as light (WCAG 2.2, relative luminance)."""
    return part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4)


def _wrapped(text: str, width: float) -> list[str]:
    """Lines of at most `width` units, broken at spaces where there are some."""
    limit, lines = max(1, int(width / (FONT_SIZE * CHARACTER))), [""]
    for word in text.split():
        while len(word) > limit:
            lines += [word[:limit], ""]
            word = word[limit:]
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= limit:
            lines[-1] = joined
        else:
            lines.append(word)
    return [line for line in lines if line]


def _text(
    text: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    colour: str = INK,
    weight: str = "",
    more: str = "",
    halo: bool = False,
) -> str:
    kind = ("ink" if colour == INK else "soft") + (" halo" if halo else "")
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text class="{kind}" x="{_short(x)}" y="{_short(y)}" text-anchor="{anchor}"'
        f' fill="{colour}"{bold}{more}>{escape(text)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, *, strong: bool = False) -> str:
    kind, colour = ("edge", SOFT) if strong else ("rule", RULE)
    return (
        f'<line class="{kind}" x1="{_short(x1)}" y1="{_short(y1)}" x2="{_short(x2)}"'
        f' y2="{_short(y2)}" stroke="{colour}"/>'
    )


def _short(value: float) -> str:
    """One decimal: a tenth of a unit cannot be seen, and every digit is in the page."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class ParallelAxis:
    """An axis of a parallel-coordinates picture: its name and the ends of what it shows."""

    name: str
    low: float
    high: float
    is_log: bool

    def at(self, value: float) -> float:
        """Where a value lies, in units of the picture; the middle where the ends are one."""
        if self.high <= self.low:
            return WIDTH / 2
        axis = _Axis(title="", low=self.low, high=self.high, ticks=(), is_log=self.is_log)
        return 16 + axis.share(value) * (WIDTH - 32)

    def words(self, value: float) -> str:
        """Three digits; what is next to nothing on a linear axis is 0."""
        return "0" if not self.is_log and abs(value) < 1e-3 else f"{value:.3g}"


@dataclass(frozen=True, kw_only=True)
class ParallelLine:
    """A line of such a picture: its name, a value per axis, and colour, width and dash."""

    name: str
    values: tuple[float | None, ...]
    style: tuple[str, float, str]


def parallel(
    axes: Sequence[ParallelAxis], lines: Sequence[ParallelLine], *, name: str, title: str
) -> Picture:
    """Axes under each other, low on the left, and every line going down through its values.

    Args:
        axes: from top to bottom.
        lines: each with as many values as there are axes; a missing value is passed over.
        name: of the ids in the picture, unique on the page.
        title: above the picture.

    Returns:
        The picture.

    Example:
        >>> axes = [ParallelAxis(name=n, low=0, high=1, is_log=False) for n in ("rate", "left")]
        >>> line = ParallelLine(name="setting 0", values=(0.5, 0.2), style=("#0081cf", 1.4, ""))
        >>> parallel(axes, [line], name="p", title="npo").words
        'setting 0: rate 0.5, left 0.2.'
    """
    step, top = 58, 8 + 1.3 * FONT_SIZE * len(_wrapped(title, WIDTH - 12)) + 30
    parts = [
        _text(line, 6, 14 + 1.3 * FONT_SIZE * row, weight="600")
        for row, line in enumerate(_wrapped(title, WIDTH - 12))
    ]
    parts += [
        _rule(16, top + step * row, WIDTH - 16, top + step * row, strong=True)
        for row, _ in enumerate(axes)
    ]
    parts += [_parallel_path(line, axes, top, step) for line in lines]
    # over the lines, which would cross them out
    for row, axis in enumerate(axes):
        y = top + step * row - 7
        parts.append(_text(axis.words(axis.low), 6, y, colour=SOFT, halo=True))
        parts.append(
            _text(axis.words(axis.high), WIDTH - 6, y, anchor="end", colour=SOFT, halo=True)
        )
        parts.append(_text(axis.name, WIDTH / 2, y, anchor="middle", halo=True))
    words = " ".join(f"{_line_words(line, axes)}." for line in lines)
    height = top + step * (len(axes) - 1) + 14
    svg = _picture(name, title, words, parts, height)
    return Picture(title=title, svg=svg, words=words, height=height)


def _parallel_path(
    line: ParallelLine, axes: Sequence[ParallelAxis], top: float, step: float
) -> str:
    """A line down through its values, with its words where the pointer rests."""
    points = [
        (axis.at(value), top + step * row)
        for row, (axis, value) in enumerate(zip(axes, line.values, strict=True))
        if value is not None and math.isfinite(value)
    ]
    path = "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
    colour, width, dash = line.style
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}>'
        f"<title>{escape(_line_words(line, axes))}</title></path>"
    )


def _line_words(line: ParallelLine, axes: Sequence[ParallelAxis]) -> str:
    values = ", ".join(
        f"{axis.name} {axis.words(value)}"
        for axis, value in zip(axes, line.values, strict=True)
        if value is not None
    )
    return f"{line.name}: {values}"


def bar_picture(
    rows: Sequence[tuple[str, float, str]], *, name: str, title: str, colour: str
) -> Picture:
    """A bar per row from 0 to 1, its name above it and its number behind it.

    Args:
        rows: (name, value in [0, 1], the value in words), from top to bottom.
        name: of the ids in the picture, unique on the page.
        title: above the picture.
        colour: of the bars.

    Returns:
        The picture.

    Example:
        >>> bar_picture([("rate", 0.5, "0.50")], name="b", title="npo", colour="#0081cf").words
        'rate: 0.50.'
    """
    y = 14.0
    parts = []
    for text in _wrapped(title, WIDTH - 12):
        parts.append(_text(text, 6, y, weight="600"))
        y += 1.3 * FONT_SIZE
    # room for the words behind the longest bar
    longest = WIDTH - 24 - max(len(text) for _, _, text in rows) * FONT_SIZE * CHARACTER
    for label, value, text in rows:
        y += 1.2 * FONT_SIZE
        parts.append(_text(label, 6, y, colour=SOFT))
        width = max(1.0, value * longest)
        parts.append(
            f'<rect x="6" y="{_short(y + 6)}" width="{_short(width)}" height="14" fill="{colour}"/>'
        )
        parts.append(_text(text, 12 + width, y + 18))
        y += 24
    words = " ".join(f"{label}: {text}." for label, _, text in rows)
    svg = _picture(name, title, words, parts, y + 8)
    return Picture(title=title, svg=svg, words=words, height=y + 8)


def swatch(colour: str, width: float, dash: str, *, mark: str = "") -> str:
    """A piece of line for a legend, none of width 0, with a symbol over it."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    line = (
        f'<path d="M0 7H34" stroke="{colour}" stroke-width="{width:g}"{dashed}/>' if width else ""
    )
    return (
        '<svg viewBox="0 0 34 14" width="34" height="14" aria-hidden="true"'
        f' xmlns="http://www.w3.org/2000/svg">{line}{mark}</svg>'
    )
