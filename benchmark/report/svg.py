"""Writes Matplotlib figures as SVG whose points have tooltips."""

import io
import re
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
}


class Tooltips:
    """Tooltips of one figure's artists."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, artist: Artist, text: str) -> None:
        """Shows `text` when the pointer is over `artist`, which must lie within its axes."""
        name = f"point-{len(self.texts)}"
        artist.set_in_layout(False)  # halves the time that the layout takes
        artist.set_gid(name)
        self.texts[name] = text


def to_svg(figure: Figure, tooltips: Tooltips, name: str, description: str) -> str:
    """Returns the figure as one ``<svg>`` element; the same content gives the same text.

    Each artist with a tooltip becomes a ``<g class="point">`` whose first child is a ``<title>``. Identifiers without a
    reference are removed; the others depend on `name`, so that many figures fit into one page.
    """
    buffer = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    referred = set(re.findall(r"#([\w-]+)", buffer.getvalue().decode()))
    for element in root.iter():
        identifier = element.get("id")
        if identifier and identifier in tooltips.texts:
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = tooltips.texts[identifier]
            element.insert(0, title)
            element.set("class", "point")
        if identifier and identifier not in referred:
            del element.attrib["id"]
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")
