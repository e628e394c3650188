"""CONTRIBUTING.md and CHANGELOG.md as pages, so that each is written once."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def contributing() -> str:
    """The page of CONTRIBUTING.md."""
    return _page("CONTRIBUTING.md")


def changelog() -> str:
    """The page of CHANGELOG.md."""
    return _page("CHANGELOG.md")


def _page(file: str) -> str:
    """The file, its links to files that are pages leading there, others as names."""
    text = (ROOT / file).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](../\1)", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|\.\./|#)[^)]+\)", r"`\1`", text)
