"""Code blocks of the pages, with what the comments before them ask for. See docs/development/documentation.md."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

DOCS = ROOT / "docs"

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--\s*(?P<kind>not run|slow|fails|needs|run|clone)(?::\s*(?P<text>.*?))?\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block, or the commands of a comment ``run``."""

    page: str
    line: int
    language: str
    title: str | None
    code: str
    not_run: str | None = None
    slow: bool = False
    fails: str | None = None
    needs: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether the block is a command that the test carries out."""
        return self.language in ("bash", "python") and self.title is None and self.not_run is None


def pages() -> list[Path]:
    """All pages written by hand."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    fences = list(FENCE.finditer(text))
    found, markers, done = [], {}, 0
    for comment_or_fence in sorted([*fences, *_comments(text, fences)], key=lambda one: one.start()):
        line = text.count("\n", 0, comment_or_fence.start()) + 1
        if text[done : comment_or_fence.start()].strip():
            markers = {}  # words between a comment and a block: it was not for that block
        done = comment_or_fence.end()
        groups = comment_or_fence.groupdict()
        if groups.get("kind") == "run":
            found.append(Block(name, line, "bash", None, groups["text"] + "\n", **markers))
            markers = {}
        elif groups.get("kind") == "clone":
            pass  # of the whole page: `needs_clone`
        elif "kind" in groups:
            markers[groups["kind"].replace(" ", "_")] = True if groups["kind"] == "slow" else groups["text"]
        else:
            language, _, attributes = groups["info"].strip().partition(" ")
            title = re.search(r'title="([^"]+)"', attributes)
            code = re.sub(rf"^{groups['indent']}", "", groups["code"], flags=re.MULTILINE)
            found.append(Block(name, line, language, title and title[1], code, **markers))
            markers = {}
    return found


def needs_clone(page: Path) -> bool:
    """Whether the commands of a page need a copy of the whole repository, which they may change."""
    return "<!-- clone -->" in page.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its code, calls, links' targets and comments; line breaks stay."""
    for pattern in (FENCE, re.compile(r"<!--.*?-->", re.DOTALL), re.compile(r"\{\{.*?\}\}", re.DOTALL)):
        text = pattern.sub(lambda found: "\n" * found.group().count("\n"), text)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)|\{[#.:][^}]*\}|<[^>\n]*>|https?://\S+", " ", text)


def environment(clone: Path, programs: Path) -> dict[str, str]:
    """The variables of what a page runs: as after `make install` in `clone`.

    ``pt-peft``, written into the empty folder `programs`, and this Python's programs come first on the path.
    """
    script = programs / "pt-peft"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom pt_peft_flare.script import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join((str(clone), str(clone / "custom"))),
        "PT_PEFT_SHARED": str((ROOT / os.environ.get("PT_PEFT_SHARED", "../shared")).resolve()),
    }


def _comments(text: str, fences: list[re.Match[str]]) -> list[re.Match[str]]:
    return [one for one in COMMENT.finditer(text) if not any(f.start() < one.start() < f.end() for f in fences)]
