"""The picture of a partition."""

# matplotlib does not annotate its keyword arguments:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping, Sequence
from pathlib import Path

from pt_peft.data.items import SplitCounts, SplitName
from pt_peft.errors import UserError
from pt_peft.files import check_place

COLOURS = "tab20"


def draw(found: Mapping[str, Mapping[SplitName, SplitCounts]], classes: Sequence[str], title: str, path: Path) -> None:
    """Draws the training images as stacked bars, one bar a site and one colour a class.

    Raises:
        UserError: if matplotlib is not installed, or `path` does not name a picture that can be written.
    """
    try:
        from matplotlib import colormaps, rc_context
        from matplotlib.figure import Figure  # not pyplot, which chooses a screen for the whole process
    except ModuleNotFoundError:
        raise UserError(
            "--out: the package 'matplotlib' is not installed; pip install matplotlib would be right."
        ) from None
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--out: '{path.name}' ends in '{path.suffix}'; .svg, .png or .pdf would be right.")
    check_place(path)
    names = list(found)
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure = Figure(figsize=(8, 1.5 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = [0] * len(names)
        for index, label in enumerate(classes):
            widths = [found[name]["train"]["classes"][label] for name in names]
            axes.barh(names, widths, left=left, label=label, color=colormaps[COLOURS](index % 20))
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("training images")
        axes.set_title(title)
        if len(classes) <= 20:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        figure.savefig(path)
