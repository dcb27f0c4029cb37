"""Bars and distributions as SVG, readable on light and dark pages; no package needed.

Coordinates are pixels of the drawing; a panel draws itself at (0, 0) and is moved to its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

__all__ = ["Bar", "Panel", "bars", "distributions", "figure"]

_WIDTH: Final = 960
_MARGIN: Final = 28
_GAP: Final = 24
_COLOURS: Final = ("#2f6fde", "#e08a1e", "#2a9d74", "#a45ad1")
"""Told apart by colour-blind readers too, and on both backgrounds."""
_STYLE: Final = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
svg{--paper:#fff;--ink:#1f2328;--faint:#656d76;--line:#d8dee4}
@media(prefers-color-scheme:dark){svg{--paper:#0d1117;--ink:#e6edf3;--faint:#9198a1;--line:#30363d}}
.paper{fill:var(--paper)}.title{font-size:17px;font-weight:600}.panel{font-weight:600}
.faint{fill:var(--faint)}.grid{stroke:var(--line)}.axis{stroke:var(--faint)}.whisker{stroke:var(--ink)}
.guide{stroke:var(--faint);stroke-dasharray:2 4}.line{fill:none;stroke-width:2}.end{text-anchor:end}
.middle{text-anchor:middle}
"""
_POINTS: Final = 400
"""Of one line at most."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawing of a size."""

    width: float
    height: float
    content: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `low` and `high` are drawn as a whisker."""

    label: str
    series: str
    value: float
    low: float | None = None
    high: float | None = None


def figure(
    title: str, subtitle: Sequence[str], series: Sequence[str], rows: Sequence[Sequence[Panel]]
) -> str:
    """A whole SVG document: a title, lines below it, a legend, and rows of panels."""
    parts = [_text(_MARGIN, 38, title, "title")]
    y = 42.0
    for line in subtitle:
        y += 18
        parts.append(_text(_MARGIN, y, line, "faint"))
    y += 14
    if len(series) > 1:
        x = float(_MARGIN)
        for name in series:
            parts.append(
                f'<rect x="{x}" y="{y + 2}" width="12" height="12" rx="2" fill="{_colour(series, name)}"/>'
            )
            parts.append(_text(x + 18, y + 12, name))
            x += 18 + _text_width(name) + 24
        y += 26
    for row in rows:
        y += 12
        x = float(_MARGIN)
        for panel in row:
            parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{panel.content}</g>')
            x += panel.width + _GAP
        y += max(panel.height for panel in row)
    height = y + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">'
        f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def bars(title: str, unit: str, values: Sequence[Bar], series: Sequence[str], *, columns: int = 1) -> Panel:
    """Horizontal bars from 0, one below the other, those of a label together.

    Args:
        series: all names, in the order of their colours.
        columns: panels that share the row's width.
    """
    width = _panel_width(columns)
    left = 16 + max(_text_width(bar.label) for bar in values)
    right = 64
    top, thick, between = 30.0, 14, 12
    limit, step = _linear_axis(max(bar.high or bar.value for bar in values))
    scale = (width - left - right) / limit
    drawn, y, label = [], top, None
    for bar in values:
        if bar.label != label:
            y += between if label is not None else 6
            label = bar.label
            rows = sum(other.label == label for other in values)
            drawn.append(_text(left - 10, y + rows * (thick + 3) / 2 + 3, label, "end"))
        length = bar.value * scale
        drawn.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{length:.1f}" height="{thick}" rx="2" '
            f'fill="{_colour(series, bar.series)}"/>'
        )
        end = length
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            low, end = left + bar.low * scale, bar.high * scale
            middle = y + thick / 2
            drawn.append(_line(low, middle, left + end, middle, "whisker"))
            drawn += [_line(x, middle - 3, x, middle + 3, "whisker") for x in (low, left + end)]
        drawn.append(_text(left + max(length, end) + 6, y + thick - 3, _number(bar.value)))
        y += thick + 3
    bottom = y + 4
    axis = []
    for index in range(round(limit / step) + 1):
        x = left + index * step * scale
        axis.append(_line(x, top, x, bottom, "grid" if index else "axis"))
        axis.append(_text(x, bottom + 15, _number(index * step), "faint middle"))
    axis.append(_text((left + width - right) / 2, bottom + 32, unit, "faint middle"))
    return Panel(width, bottom + 40, _text(0, 14, title, "panel") + "".join(axis + drawn))


def distributions(
    title: str, unit: str, samples: Mapping[str, Sequence[float]], series: Sequence[str], *, columns: int = 2
) -> Panel:
    """What share of the values is at most so large, a line for each series; the time axis is logarithmic.

    Args:
        samples: values above 0 by series; a series without any is left out.
    """
    width, height = _panel_width(columns), 236.0
    left, right, top, bottom = 40.0, 12.0, 30.0, height - 40
    known = {name: sorted(value for value in values if value > 0) for name, values in samples.items()}
    known = {name: values for name, values in known.items() if values}
    heading = _text(0, 14, title, "panel")
    if not known:
        return Panel(width, height, heading + _text(left, top + 24, "nothing was seen", "faint"))
    ticks = _log_ticks(
        min(values[0] for values in known.values()), max(values[-1] for values in known.values())
    )
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def across(value: float) -> float:
        return left + (math.log(value) - low) / (high - low) * (width - left - right)

    def up(share: float) -> float:
        return bottom - share * (bottom - top)

    parts = [heading]
    for share in (0, 0.25, 0.5, 0.75, 0.95, 1):
        kind = "axis" if share == 0 else "guide" if share in (0.5, 0.95) else "grid"
        parts.append(_line(left, up(share), width - right, up(share), kind))
        if share != 1:
            parts.append(_text(left - 6, up(share) + 4, f"{share:.0%}", "faint end"))
    free_from = -math.inf
    for tick in ticks:
        x = across(tick)
        parts.append(_line(x, top, x, bottom, "grid"))
        half = _text_width(_number(tick)) / 2 + 3
        if x - half > free_from:
            parts.append(_text(x, bottom + 15, _number(tick), "faint middle"))
            free_from = x + half
    parts.append(_text((left + width - right) / 2, bottom + 32, unit, "faint middle"))
    for name, values in known.items():
        points = [f"M{across(values[0]):.1f} {up(0):.1f}"]
        last = len(values) - 1
        indices = sorted(
            {round(index * last / min(last, _POINTS)) for index in range(_POINTS + 1)} if last else {0}
        )
        for index in indices:
            if index <= last:
                points.append(f"H{across(values[index]):.1f}V{up((index + 1) / len(values)):.1f}")
        points.append(f"H{width - right:.1f}")
        parts.append(f'<path class="line" stroke="{_colour(series, name)}" d="{"".join(points)}"/>')
    return Panel(width, height, "".join(parts))


def _panel_width(columns: int) -> float:
    return (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns


def _colour(series: Sequence[str], name: str) -> str:
    return _COLOURS[series.index(name) % len(_COLOURS)]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(text)}</text>'


def _text_width(text: str) -> float:
    """About, at 12 pixels: fonts differ."""
    return 6.7 * len(text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _number(value: float) -> str:
    """Three figures are enough."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _linear_axis(highest: float) -> tuple[float, float]:
    """The end of an axis from 0, and the step of its marks: 1, 2 or 5 times a power of ten."""
    highest = highest or 1.0
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if highest / (power * factor) <= 6)
    return step * math.ceil(highest / step), step


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """Marks of 1, 2 and 5 times powers of ten around two values; two marks at least."""
    powers = range(math.floor(math.log10(lowest)) - 1, math.ceil(math.log10(highest)) + 2)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(index for index, mark in enumerate(marks) if mark <= lowest)
    last = min(index for index, mark in enumerate(marks) if mark >= highest)
    return marks[first : max(last, first + 1) + 1]
