"""Which files a table means: its names come from other machines, folders and programs.

A name is looked up as the path inside the folder or archive. If no file has that path, the name is the end of one
file's path, with or without suffix, in upper or lower case. Of several such files none is chosen.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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


class _Index:
    """Images by what a table may call them."""

    def __init__(self, files: Sequence[str], depths: Collection[int]):
        """Finds the ends of the files' paths.

        Args:
            files: see `look_up`.
            depths: the numbers of folders in the names of the table.
        """
        self._files, self._lengths = files, {depth + 1 for depth in depths}
        self._paths = [plain_name(file) for file in files]
        self._names = self._by_end(self._paths)

    @cached_property
    def _ids(self) -> tuple[Sequence[str], Mapping[str, Sequence[int]]]:
        return self._by_end([_SUFFIX.sub("", path) for path in self._paths])

    def _by_end(self, paths: Sequence[str]) -> tuple[Sequence[str], Mapping[str, Sequence[int]]]:
        """`paths`, and the places of those that end so, by ends in lower case of any of the lengths, and whole."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, path in enumerate(paths):
            folded = path.casefold()
            parts = folded.split("/")
            places[folded].append(place)
            for length in self._lengths:
                if length < len(parts):
                    places["/".join(parts[-length:])].append(place)
        return paths, places

    def meant(self, path: str, whole: bool = False) -> Sequence[str]:
        """The files that `path` may mean.

        Args:
            path: as `_path` gives it.
            whole: whether it must be the whole path of the file, but for the suffix.
        """
        for with_suffix in (True, False):
            paths, places = self._names if with_suffix else self._ids
            ends = places.get(path.casefold(), ())
            if whole:
                ends = [place for place in ends if paths[place].casefold() == path.casefold()]
            same_case = [place for place in ends if paths[place].endswith(path)]
            for chosen in ([place for place in same_case if paths[place] == path], same_case, ends):
                if chosen:
                    return [self._files[place] for place in chosen]
        return ()
