"""Charts as SVG: histograms, a funnel and rates over time. Colours come from the page's style sheet.

Every text goes through markupsafe, so that nothing from data can become markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from data_engine.report.distribution import Bars
from data_engine.report.shown import duration, short

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 22, 44
_LABEL = 40  # width of "median"

Scale = Callable[[float], float]


def histogram(
    bars: Bars,
    names: Sequence[str],
    axis: str,
    counted: str,
    marks: Sequence[dict[str, float | int | None]],
    title: str,
) -> Markup:
    """One distribution as counts, two as shares of each. `marks`: summaries, whose p5, p50 and p95 are drawn."""
    shares = len(bars.counts) > 1
    heights = [
        [100 * count / (sum(counts) or 1) for count in counts] if shares else list(map(float, counts))
        for counts in bars.counts
    ]
    ticks = nice_ticks(0, max(map(max, heights), default=0) or 1)
    y = _linear(0, ticks[-1], HEIGHT - _BOTTOM, _TOP)
    x = _axis_scale(bars)
    parts = [_y_axis(ticks, y, f"% of {counted}" if shares else counted), _x_axis(_x_ticks(bars), x, axis)]
    for side, (values, counts) in enumerate(zip(heights, bars.counts, strict=True)):
        parts.append(_bars(bars, values, counts, x, y, names[side], side))
    if len(marks) == 1:
        parts.append(_marks(marks[0], x, bars))
    return _svg(title, parts)


def rate_chart(rates: Sequence[float], seconds: float, pauses: Sequence[float], title: str, side: int = 0) -> Markup:
    """Images a second over working time; dashed lines where time was cut out."""
    ticks = nice_ticks(0, max(rates, default=0) or 1)
    y = _linear(0, ticks[-1], HEIGHT - _BOTTOM, _TOP)
    x = _linear(0, seconds or 1, _LEFT, WIDTH - _RIGHT)
    unit, name = next(
        ((u, n) for u, n in ((86400, "days"), (3600, "hours"), (60, "minutes")) if seconds > 3 * u), (1, "seconds")
    )
    marks = [(tick * unit, short(tick)) for tick in nice_ticks(0, seconds / unit or 1) if tick * unit <= seconds]
    parts = [_y_axis(ticks, y, "images/s"), _x_axis(marks, x, f"working time, {name}")]
    width = seconds / len(rates) if rates else 0
    for i, rate in enumerate(rates):
        tip = f"{duration(i * width)} to {duration((i + 1) * width)}: {rate:.3g} images/s"
        parts.append(_bar(x(i * width), x((i + 1) * width), y(rate), y(0), side, tip))
    for pause in pauses:
        parts.append(Markup('<path class="cut" d="M{:.1f} {}V{}"/>').format(x(pause), _TOP, HEIGHT - _BOTTOM))
    return _svg(title, parts)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = (high - low) or 1.0
    power = math.floor(math.log10(span / most))
    step = next(
        factor * 10.0**exponent
        for exponent in (power, power + 1)
        for factor in (1, 2, 5)
        if span / (factor * 10.0**exponent) <= most
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        WIDTH, HEIGHT, title, title, Markup("").join(parts)
    )


def _bars(
    bars: Bars, values: Sequence[float], counts: Sequence[int], x: Scale, y: Scale, name: str, side: int
) -> Markup:
    drawn = []
    shift = _shift(bars)
    for i, (value, count) in enumerate(zip(values, counts, strict=True)):
        if count:
            tip = f"{name + ': ' if name else ''}{_interval(bars, i)}: {count:,}"
            if len(bars.counts) > 1:
                tip += f" ({value:.2g} %)"
            drawn.append(_bar(x(bars.edges[i] - shift), x(bars.edges[i + 1] - shift), y(value), y(0), side, tip))
    return Markup("").join(drawn)


def _bar(left: float, right: float, top: float, bottom: float, side: int, tip: str) -> Markup:
    gap = 0.5 if right - left > 3 else 0
    return Markup(
        '<rect class="side{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
    ).format(side, left + gap, top, max(right - left - 2 * gap, 0.5), max(bottom - top, 0.5), tip)


def _marks(summary: dict[str, float | int | None], x: Scale, bars: Bars) -> Markup:
    """Lines at p5, p50 and p95. The median is always named, the others where there is room beside it."""
    drawn: list[Markup] = []
    at = {name: x(max(value, bars.edges[0])) for name in ("p5", "p50", "p95") if (value := summary[name]) is not None}
    for name, position in at.items():
        drawn.append(Markup('<path class="mark" d="M{:.1f} {}V{}"/>').format(position, _TOP, HEIGHT - _BOTTOM))
        if name == "p50" or abs(position - at["p50"]) > _LABEL:
            label = {"p5": "5 %", "p50": "median", "p95": "95 %"}[name]
            drawn.append(Markup('<text class="marked" x="{:.1f}" y="{}">{}</text>').format(position, _TOP - 6, label))
    return Markup("").join(drawn)


def _y_axis(ticks: Sequence[float], y: Scale, label: str) -> Markup:
    lines = [
        Markup('<path class="grid" d="M{} {:.1f}H{}"/><text class="y" x="{}" y="{:.1f}">{}</text>').format(
            _LEFT, y(tick), WIDTH - _RIGHT, _LEFT - 8, y(tick) + 4, short(tick)
        )
        for tick in ticks
    ]
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    lines.append(
        Markup('<text class="axis" transform="translate(12 {:.1f}) rotate(-90)">{}</text>').format(middle, label)
    )
    return Markup("").join(lines)


def _x_axis(ticks: Sequence[tuple[float, str]], x: Scale, label: str) -> Markup:
    base = HEIGHT - _BOTTOM
    drawn = [
        Markup('<path class="tick" d="M{:.1f} {}v4"/><text class="x" x="{:.1f}" y="{}">{}</text>').format(
            x(value), base, x(value), base + 17, text
        )
        for value, text in ticks
    ]
    drawn.append(Markup('<path class="base" d="M{} {}H{}"/>').format(_LEFT, base, WIDTH - _RIGHT))
    drawn.append(
        Markup('<text class="axis" x="{}" y="{}">{}</text>').format((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, label)
    )
    return Markup("").join(drawn)


def _x_ticks(bars: Bars) -> list[tuple[float, str]]:
    low, high = bars.edges[0], bars.edges[-1] - _shift(bars)
    if bars.log:
        decades = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        ticks = [10.0**decade for decade in decades]
        if len(ticks) < 3:
            ticks = [
                factor * 10.0**decade for decade in range(decades.start - 1, decades.stop + 1) for factor in (1, 2, 5)
            ]
    else:
        ticks = nice_ticks(low, high)
        if bars.whole:
            ticks = [tick for tick in ticks if tick == int(tick)]
    return [(tick, short(tick)) for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _axis_scale(bars: Bars) -> Scale:
    """Whole numbers stand under the middle of their bars."""
    low, high = bars.edges[0], bars.edges[-1]
    if bars.log:
        inner = _linear(math.log10(low), math.log10(high), _LEFT, WIDTH - _RIGHT)
        return lambda value: inner(math.log10(value))
    shift = _shift(bars)
    return _linear(low - shift, high - shift, _LEFT, WIDTH - _RIGHT)


def _interval(bars: Bars, index: int) -> str:
    low, high = bars.edges[index], bars.edges[index + 1]
    if _shift(bars):
        return short(low) if high - low == 1 else f"{short(low)} to {short(high - 1)}"
    return f"{short(low)} to {short(high)}"


def _shift(bars: Bars) -> float:
    return 0.5 if bars.whole and not bars.log else 0.0


def _linear(low: float, high: float, start: float, stop: float) -> Scale:
    return lambda value: start + (value - low) / ((high - low) or 1) * (stop - start)
