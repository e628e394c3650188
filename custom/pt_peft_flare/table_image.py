"""Draws tables as images, with Pillow: a server need not import matplotlib for it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pt_peft.experiment.sections import Data

ANSWERS = ("true negative", "false positive", "false negative", "true positive")
"""The columns of ``multilabel``."""
SIDE = 720
"""Pixels that the cells of many rows or columns share; a cell is at most `CELL` wide."""
CELL = 56
READABLE = 16
"""Pixels of a cell from which names and what is in the cells are written."""
DARKEST = (11, 122, 114)
"""Colour, RGB, of a cell whose share is 1."""
HOLE = "-"
"""In a cell without a value."""
INK = (27, 43, 42)
LONGEST = 24
"""Characters of a name that are shown."""


def draw_confusion(confusion: Sequence[Sequence[int]], data: Data) -> npt.NDArray[np.uint8]:
    """The counts as a table whose cells are the darker, the more of their row's images they have.

    Args:
        confusion: counts by label (rows) and prediction (columns) as in `SplitMetrics`.
        data: names the classes.

    Returns:
        uint8 (height, width, 3). Names and counts are left out of cells that are too small for them.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    columns = ANSWERS if data.task == "multilabel" else data.classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[str(count) for count in row] for row in counts]
    return _draw_table(shares, texts, data.classes, columns, "label \\ prediction")


def draw_cross_site(
    values: Sequence[Sequence[float | None]], models: Sequence[str], sites: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """A metric as a table whose cells are the darker, the better the model is there.

    Args:
        values: by model (rows) and site (columns), 1 at best; None for a hole.
        models: names of the rows.
        sites: names of the columns.

    Returns:
        As `draw_confusion`.
    """
    shares = np.array([[0.0 if value is None else max(value, 0.0) for value in row] for row in values])
    texts = [[HOLE if value is None else f"{value:.2f}" for value in row] for row in values]
    return _draw_table(shares, texts, models, sites, "model \\ site")


def _draw_table(
    shares: npt.NDArray[np.float64],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    corner: str,
) -> npt.NDArray[np.uint8]:
    """A table of cells that are the darker, the greater their share, 0 … 1; (rows, columns)."""
    from PIL import Image, ImageDraw, ImageFont  # once, at the end of a job

    cell = max(1, min(CELL, SIDE // max(len(rows), len(columns))))
    colours = (255 + shares[:, :, None] * (np.array(DARKEST) - 255)).round().astype(np.uint8)
    cells = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    if cell < READABLE:
        return cells

    font = ImageFont.load_default(min(13, cell * 0.45))
    shown, heads = ([name[:LONGEST] for name in names] for names in (rows, columns))
    left, top = (int(max(font.getlength(name) for name in (corner, *names))) + 12 for names in (shown, heads))
    image = Image.new("RGB", (left + cells.shape[1] + 1, top + cells.shape[0] + 1), "white")
    image.paste(Image.fromarray(cells), (left, top))
    pen = ImageDraw.Draw(image)
    pen.text((left - 6, top - 6), corner, INK, font, anchor="rb")
    for row, name in enumerate(shown):
        middle = top + (row + 0.5) * cell
        pen.text((left - 6, middle), name, INK, font, anchor="rm")
        for column in range(len(heads)):
            ink = "white" if shares[row, column] > 0.5 else INK
            pen.text((left + (column + 0.5) * cell, middle), texts[row][column], ink, font, anchor="mm")
    for column, name in enumerate(heads):
        upright = Image.new("RGB", (top - 6, cell), "white")
        ImageDraw.Draw(upright).text((0, cell / 2), name, INK, font, anchor="lm")
        image.paste(upright.rotate(90, expand=True), (left + column * cell, 0))
    return np.asarray(image)
