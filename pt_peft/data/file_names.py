"""Which files a table means: its names come from other machines, folders and programs.

A name is looked up as the path inside the folder or archive. If no file has that path, the name is the end of one
file's path, with or without suffix, in upper or lower case. Of several such files none is chosen.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pt_peft.data.listing import plain_name
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


def look_up(names: Sequence[str], files: Sequence[str]) -> Lookup:
    """Finds the files that a table means.

    If no file is found for any of the names, all are looked up without folders that they begin with alike: those of
    another machine, or above the images. If that does not help either, without their suffixes.

    Args:
        names: one or more, as the table has them.
        files: the images in the folder or zip archive, by their paths inside.
    """
    paths = [_path(name) for name in names]
    index = _Index(files, {path.count("/") for path in paths})
    for suffixes, how in ((True, ""), (False, "without their suffixes")):
        named = paths if suffixes else [_SUFFIX.sub("", path) for path in paths]
        found = [index.meant(path) for path in named]
        if not any(found):
            found, dropped = _without_folders(named, index)
            how = " and ".join(part for part in (dropped and f"without '{dropped}'", how) if part)
        if any(found):
            return Lookup(found, how)
    return Lookup([()] * len(names))


def _without_folders(paths: Sequence[str], index: "_Index") -> tuple[list[Sequence[str]], str]:
    """The files that `paths` mean without folders that all begin with, and these folders: the fewest that find most."""
    best: list[Sequence[str]] = [()] * len(paths)
    fewest = ""
    for dropped in _common_folders(paths):
        found = [index.meant(path[len(dropped) :], whole=True) for path in paths]
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


class _Index:
    """Images by what a table may call them."""

    def __init__(self, files: Sequence[str], depths: Collection[int]):
        """Finds the ends of paths, in lower case, with suffixes and without them.

        Args:
            files: see `look_up`.
            depths: the numbers of folders in the names of the table.
        """
        self._names: dict[str, list[_End]] = defaultdict(list)
        self._ids: dict[str, list[_End]] = defaultdict(list)
        for file in files:
            path = plain_name(file)
            for ends, shown in ((self._names, path), (self._ids, _SUFFIX.sub("", path))):
                parts = shown.split("/")
                for length in {*(depth + 1 for depth in depths if depth < len(parts)), len(parts)}:
                    text = "/".join(parts[-length:])
                    ends[text.casefold()].append(_End(text, length == len(parts), file))

    def meant(self, path: str, whole: bool = False) -> Sequence[str]:
        """The files that `path` may mean.

        Args:
            path: as `_path` gives it.
            whole: whether it must be the whole path of the file, but for the suffix.
        """
        for ends in (self._names, self._ids):
            found = [end for end in ends.get(path.casefold(), ()) if end.whole or not whole]
            same = [end for end in found if end.text == path]
            for chosen in ([end for end in same if end.whole], same, found):
                if chosen:
                    return [end.file for end in chosen]
        return ()
