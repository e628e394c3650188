"""Which files a table means: its names come from other machines, folders and programs.

A name is looked up as the path inside the folder or archive. If no file has that path, the name is the end of one
file's path, with or without suffix, in upper or lower case. Of several such files none is chosen.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pt_peft.data.listing import Files, plain_name
from pt_peft.data.names import clean

_SUFFIX = re.compile(r"(?<=[^/])\.[A-Za-z][A-Za-z0-9]{0,7}$")
"""Of a file's name; the last number of a DICOM identifier is none."""


@dataclass(frozen=True)
class Lookup:
    """What the names in a table mean."""

    files: Sequence[Sequence[str]]
    """For each name the files that it may mean: one, or none, or several where it is ambiguous."""
    how: str = ""
    """How all names had to be changed to be found, in words; empty if they were not."""


def look_up(names: Sequence[str], files: Files) -> Lookup:
    """Finds the files that a table means.

    If no file is found for any of the names, all are looked up without folders that they begin with alike: those of
    another machine, or above the folder. If that does not help either, without their suffixes.

    Args:
        names: one or more, as the table has them.
        files: those of the folder or zip archive.
    """
    paths = [_path(name) for name in names]
    ends = _Ends(files, {path.count("/") for path in paths})
    for suffixes, how in ((True, ""), (False, "without their suffixes")):
        named = paths if suffixes else [_SUFFIX.sub("", path) for path in paths]
        found = [ends.meant(path) for path in named]
        if not any(found):
            found, dropped = _without_folders(named, ends)
            how = " and ".join(part for part in (dropped and f"without '{dropped}'", how) if part)
        if any(found):
            return Lookup(found, how)
    return Lookup([()] * len(names))


def _without_folders(paths: Sequence[str], ends: "_Ends") -> tuple[list[Sequence[str]], str]:
    """The files that `paths` mean without folders that all begin with, and these folders: the fewest that find most."""
    best: list[Sequence[str]] = [()] * len(paths)
    fewest = ""
    for dropped in _common_folders(paths):
        found = [ends.meant(path[len(dropped) :], whole=True) for path in paths]
        if sum(map(bool, found)) > sum(map(bool, best)):
            best, fewest = found, dropped
    return best, fewest


def _common_folders(paths: Collection[str]) -> Iterator[str]:
    """Yields what all of `paths` begin with, folder by folder: ``a/``, ``a/b/`` …."""
    shared = posixpath.commonprefix([min(paths), max(paths)])
    for end in re.finditer("/", shared):
        yield shared[: end.end()]


def _path(name: str) -> str:
    """`name` in Unicode's composed form, with ``/`` between its parts and no ``.`` among them."""
    return posixpath.normpath(clean(name).replace("\\", "/"))


class _End(NamedTuple):
    """The end of a file's path."""

    text: str
    whole: bool
    """Whether it is all of the path."""
    file: str


class _Ends:
    """The files of a folder or archive, by what a table may call them."""

    def __init__(self, files: Files, depths: Collection[int]):
        """Keeps the files.

        Args:
            files: those of the folder or zip archive.
            depths: the numbers of folders in the names of the table.
        """
        self._images, self._lengths = files.images, {depth + 1 for depth in depths}
        self._names = self._by_end([*files.images, *files.others], lambda path: path)

    @cached_property
    def _ids(self) -> Mapping[str, Sequence[_End]]:
        """The images without their suffixes; other files may lie beside an image and share its name."""
        return self._by_end(self._images, lambda path: _SUFFIX.sub("", path))

    def _by_end(self, files: Sequence[str], shown: Callable[[str], str]) -> Mapping[str, Sequence[_End]]:
        """The ends of the files' paths as `shown`, by themselves in lower case."""
        ends: dict[str, list[_End]] = defaultdict(list)
        for file in files:
            parts = shown(plain_name(file)).split("/")
            for length in {*self._lengths, len(parts)}:
                if length <= len(parts):
                    text = "/".join(parts[-length:])
                    ends[text.casefold()].append(_End(text, length == len(parts), file))
        return ends

    def meant(self, path: str, whole: bool = False) -> Sequence[str]:
        """The files that `path` may mean.

        Args:
            path: as `_path` gives it.
            whole: whether it must be the whole path of the file, but for the suffix.
        """
        known = [self._names] if _SUFFIX.search(path) else [self._names, self._ids]
        for ends in known:
            found = [end for end in ends.get(path.casefold(), ()) if end.whole or not whole]
            same = [end for end in found if end.text == path]
            for chosen in ([end for end in same if end.whole], same, found):
                if chosen:
                    return [end.file for end in chosen]
        return ()
