"""Lines over a logarithmic axis, written as SVG by hand."""

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 130, 40, 50
COLOURS = ("#1f6feb", "#6e7781", "#bc4c00", "#1a7f37", "#8250df")
Series = Mapping[str, Mapping[float, float]]


def lines(title: str, x_label: str, y_label: str, series: Series) -> str:
    """One picture; x is logarithmic, y begins at 0."""
    drawn = {name: dict(sorted(points.items())) for name, points in series.items() if points}
    xs = sorted({x for points in drawn.values() for x in points})
    top = _nice(max(y for points in drawn.values() for y in points.values()))
    low, high = math.log10(xs[0]), math.log10(xs[-1])

    def x_at(x: float) -> float:
        return LEFT + (math.log10(x) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [_frame(title, x_label, y_label)]
    for step in range(5):
        y = top * step / 4
        parts.append(_rule(y_at(y)) + _text(LEFT - 8, y_at(y) + 4, f"{y:g}", "end"))
    parts += [_text(x_at(x), HEIGHT - BOTTOM + 18, f"{x:,.0f}", "middle") for x in xs]
    for (name, points), colour in zip(drawn.items(), COLOURS, strict=False):
        places = [(x_at(x), y_at(y)) for x, y in points.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(places[-1][0] + 8, places[-1][1] + 4, name, "start", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _frame(title: str, x_label: str, y_label: str) -> str:
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            _text(middle, 22, title, "middle", size=14),
            _text(middle, HEIGHT - 12, x_label, "middle"),
            _text(LEFT - 8, TOP - 12, y_label, "middle"),
        ]
    )


def _rule(y: float) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>\n'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#24292f", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _nice(value: float) -> float:
    """A round number not below a value."""
    power = 10.0 ** math.floor(math.log10(value or 1))
    return next(power * step for step in (1, 2, 4, 5, 8, 10) if power * step >= value)
