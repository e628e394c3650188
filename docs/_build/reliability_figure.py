"""Draws docs/images/reliability.svg from benchmark/results/prevalence.json: ``python docs/_build/reliability_figure.py``."""

from collections.abc import Iterator
from pathlib import Path

from macros import ROOT, load

FIGURE = ROOT / "docs" / "images" / "reliability.svg"

SIDE, LEFT, TOP = 300, 60, 14
"""The square of the curves, and what stands beside it."""
LEGEND = LEFT + SIDE + 30
LINES = {
    "as trained": ("line", "6 4", "as trained: all classes alike"),
    "own": ("accent", "", "the site's own counts"),
    "em": ("line", "2 3", "estimated by EM"),
}
"""The ways that are drawn: class, dashes and words."""
FEWEST = 20
"""A bin of fewer images is left out."""


def draw() -> str:
    """The figure as SVG."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEGEND + 230} {TOP + SIDE + 46}">',
            *_axes(),
            *_curves(),
            "</svg>\n",
        )
    )


def _axes() -> Iterator[str]:
    for step in range(6):
        value = step / 5
        yield f'  <path class="box" stroke-opacity="0.2" d="M{_x(0)} {_y(value)}H{_x(1)}M{_x(value)} {_y(0)}V{_y(1)}"/>'
        yield f'  <text class="muted" x="{LEFT - 8}" y="{_y(value) + 4}" text-anchor="end">{value:g}</text>'
        yield f'  <text class="muted" x="{_x(value)}" y="{_y(0) + 18}" text-anchor="middle">{value:g}</text>'
    yield f'  <path class="box" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>'
    yield f'  <text class="muted" x="{_x(0.5)}" y="{_y(0) + 38}" text-anchor="middle">probability of the answer</text>'
    middle = _y(0.5)
    turned = f'transform="rotate(-90 16 {middle})"'
    yield f'  <text class="muted" x="16" y="{middle}" text-anchor="middle" {turned}>share of right answers</text>'


def _curves() -> Iterator[str]:
    rows = {row["name"]: row for row in load("prevalence.json")["rows"]}
    for place, (name, (kind, dashes, words)) in enumerate(LINES.items()):
        bins = [one for one in rows[name]["curve"] if one["images"] >= FEWEST]
        points = "L".join(f"{_x(one['confidence'])} {_y(one['accuracy'])}" for one in bins)
        yield f'  <path class="{kind}" stroke-dasharray="{dashes}" d="M{points}"/>'
        y = TOP + 20 + 24 * place
        yield f'  <path class="{kind}" stroke-dasharray="{dashes}" d="M{LEGEND} {y}H{LEGEND + 34}"/>'
        yield f'  <text class="muted" x="{LEGEND + 42}" y="{y + 4}">{words}</text>'


def _x(share: float) -> float:
    return round(LEFT + share * SIDE, 1)


def _y(share: float) -> float:
    return round(TOP + (1 - share) * SIDE, 1)


def main() -> None:
    """Writes the figure."""
    Path(FIGURE).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
