"""Matplotlib figures as SVG whose points say what they are when hovered over."""

import io
import re
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
STYLE = {
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
    """Texts for artists of one figure."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, artist: Artist, text: str) -> None:
        """`artist`, which lies within its axes, will show `text` when hovered over."""
        name = f"point-{len(self.texts)}"
        artist.set_in_layout(False)  # halves the time of the layout
        artist.set_gid(name)
        self.texts[name] = text


def to_svg(figure: Figure, tooltips: Tooltips, name: str, description: str) -> str:
    """The figure as one ``<svg>`` element, the same for the same content.

    Each artist with a tooltip becomes a ``<g class="point">`` whose first child is a ``<title>``. Identifiers that nothing
    refers to are removed, and the others start from `name`, so that many figures fit into one page.
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
        if identifier in tooltips.texts:
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = tooltips.texts[identifier]
            element.insert(0, title)
            element.set("class", "point")
        if identifier and identifier not in referred:
            del element.attrib["id"]
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")
