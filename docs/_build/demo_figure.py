"""Draws README's figure, docs/images/demo.svg, from benchmark/results/demo.json: ``python docs/_build/demo_figure.py``."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macros import ROOT, load

FIGURE = ROOT / "docs" / "images" / "demo.svg"

WIDTH, HEIGHT = 760, 330
LEFT, RIGHT, TOP, BOTTOM = 64, 44, 24, 52
DECADES = (2, 6)
"""Powers of ten at the ends of the horizontal axis."""
ACCURACIES = (0.70, 0.90)

STYLE = """\
  <style>
    .demo { --ink: #1b2b2a; --faint: #c9d4d2; --point: #0b7a72; --line: #b34700 }
    @media (prefers-color-scheme: dark) { .demo { --ink: #e4eeec; --faint: #3c4a48; --point: #5ad1c6; --line: #ffb74d } }
    .demo text { fill: var(--ink); font-size: 12.5px }
    .demo .grid { stroke: var(--faint) }
    .demo .point { fill: var(--point) }
    .demo .pooled { stroke: var(--line); stroke-width: 1.5; stroke-dasharray: 6 4 }
  </style>"""

ABOVE = ("full", "lora_vpt", "dvpt", "bitfit", "vpt_shallow", "linear_probe")
"""Methods whose name stands above their point, the others' below, so that names do not cover one another."""


def draw() -> str:
    """The figure as SVG."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="demo" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="Balanced accuracy of ten methods against the numbers exchanged in a round" '
            'font-family="system-ui, sans-serif">',
            STYLE,
            *_axes(),
            *_content({row["name"]: row for row in load("demo.json")["rows"]}),
            "</svg>\n",
        )
    )


def _axes() -> Iterator[str]:
    for power in range(DECADES[0], DECADES[1] + 1):
        x = _x(10**power)
        yield f'  <path class="grid" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield f'  <text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10**power:,}</text>'
    for step in range(5):
        value = ACCURACIES[0] + step * (ACCURACIES[1] - ACCURACIES[0]) / 4
        yield f'  <path class="grid" d="M{LEFT} {_y(value)}H{WIDTH - RIGHT}"/>'
        yield f'  <text x="{LEFT - 8}" y="{_y(value) + 4}" text-anchor="end">{value:.2f}</text>'
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'  <text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">balanced accuracy</text>'
    center = (LEFT + WIDTH - RIGHT) / 2
    yield f'  <text x="{center}" y="{HEIGHT - 10}" text-anchor="middle">numbers that a site sends in a round</text>'


def _content(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    pooled = _y(_accuracy(rows["pooled"]))
    yield f'  <path class="pooled" d="M{LEFT} {pooled}H{WIDTH - RIGHT}"/>'
    yield f'  <text x="{LEFT + 8}" y="{pooled - 6}">pooled: all images in one place</text>'
    for name, row in rows.items():
        if not name.startswith("federated "):
            continue
        method = name.removeprefix("federated ")
        x, y = _x(row["exchanged_parameters"]), _y(_accuracy(row))
        yield f'  <circle class="point" cx="{x}" cy="{y}" r="4.5"/>'
        yield f'  <text x="{x}" y="{y + (-9 if method in ABOVE else 19)}" text-anchor="middle">{method}</text>'


def _accuracy(row: dict[str, Any]) -> float:
    return row["test"]["pooled"]["balanced_accuracy"]


def _x(count: int) -> float:
    low, high = DECADES
    return round(LEFT + (math.log10(count) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)


def _y(accuracy: float) -> float:
    low, high = ACCURACIES
    return round(TOP + (high - accuracy) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def main() -> None:
    """Writes the figure."""
    Path(FIGURE).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
