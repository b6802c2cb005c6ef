"""Bar charts as SVG: a handful of rectangles needs no plotting library."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

WIDTH, LABEL, ROW, BAR = 780, 310, 34, 20
COLOURS = ("#0b6e99", "#8a9ba8")


def bar_chart(title: str, unit: str, values: Mapping[str, float]) -> str:
    """Horizontal bars from zero; the last one, ours, in colour."""
    top = 44
    height = top + ROW * len(values) + 14
    largest = max(values.values()) or 1.0
    rows = []
    for place, (label, value) in enumerate(values.items()):
        y = top + ROW * place
        length = (WIDTH - LABEL - 110) * value / largest
        colour = COLOURS[0] if place == len(values) - 1 else COLOURS[1]
        rows += [
            f'<text x="{LABEL - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{max(length, 1):.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{LABEL + length + 8:.1f}" y="{y + 15}">{_number(value)} {escape(unit)}</text>',
        ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="14" fill="#1f2933">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="14" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
            *rows,
            "</svg>",
            "",
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
