"""The notebooks in `docs/notebooks` as pages: their text, and their code as blocks."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"


def cells(path: Path) -> list[tuple[str, str]]:
    """The kind, ``markdown`` or ``code``, and the text of each cell of a notebook."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def page(path: Path) -> str:
    """The page of a notebook. Its links to other notebooks lead to their pages."""
    title, *parts = (f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells(path))
    heading, _, rest = title.partition("\n")
    download = f"*A Jupyter notebook: [{path.name}]({path.name}).*"
    return "\n\n".join((heading, download, rest.strip(), *parts)).replace(".ipynb)", ".md)").replace(
        f"({path.stem}.md)", f"({path.name})"
    )


PAGES: dict[str, Callable[[], str]] = {
    f"notebooks/{path.stem}.md": partial(page, path) for path in sorted(FOLDER.glob("*.ipynb"))
}
