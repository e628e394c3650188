"""The images in a folder or zip archive. What else is in it is counted and named."""

import os
import stat
import zipfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from pt_peft.data.archive import OpenArchive, opened_zip
from pt_peft.data.file_kinds import NAMES_OF_ARCHIVES, is_image, named_as_image
from pt_peft.data.names import clean
from pt_peft.data.problems import Level, Report, Tally, stop
from pt_peft.errors import UserError


class _Cause(NamedTuple):
    """Why something is not taken."""

    kind: str
    cause: str
    level: Level


class _Found(NamedTuple):
    """Something in a folder or archive."""

    name: str
    """Its path in there; a folder's ends in ``/``."""
    not_taken: _Cause | None = None


_HIDDEN = _Cause("not taken", "they are hidden, or an operating system's own", "warning")
_LISTED = _Cause("not taken", "they lead to folders that are listed already", "warning")
_ODD = _Cause("not taken", "they are neither files nor folders", "warning")
_EMPTY = _Cause("not taken", "they are empty", "warning")
_NO_IMAGE = _Cause("not taken", "they are no images by name or content", "warning")
_ARCHIVE = _Cause("not taken", "they are archives, which would have to be unpacked", "warning")
_BROKEN = _Cause("broken link", "they are links to what is not there or cannot be reached", "error")
_SAME_NAME = _Cause(
    "two files of one name", "names must differ in more than Unicode's forms, blanks and backslashes", "error"
)
_SYSTEM = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", "@eadir", "#recycle"),
    )
)
"""What macOS, Windows, Linux and storage devices leave beside files, in lower case. Hidden names begin with a dot."""
_AT_ONCE = 16
"""Files that are looked into at a time: one by one, 100,000 files on a network drive would take minutes."""


def plain_name(name: str) -> str:
    """A file's path as it is compared: in NFC, with ``/`` between its parts and no blanks around them.

    macOS writes NFD; some programs on Windows write backslashes into zip archives. A zip archive's names that are not
    marked as UTF-8 have been read as code page 437, although macOS writes UTF-8 without a mark.
    """
    if not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    parts = (clean(part) for part in name.replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", "."))


def shown(name: str) -> str:
    """A name in quotes for a message; what cannot be printed is escaped."""
    return f"'{name}'" if name.isprintable() else ascii(name)


def listed_files(path: Path, report: Report = stop, tables: Collection[Path] = ()) -> list[str]:
    """The images in the folder or zip archive `path`, named as `open_archive` takes them, in the order of `plain_name`.

    A file is an image if its name or its content says so. Links are followed; each folder is listed once.

    Args:
        path: the folder or zip archive.
        report: takes links to nothing, files that cannot be read and files of one name as errors, and what else is
            there as warnings; a sentence for each cause.
        tables: files that may lie among them and are used otherwise.

    Raises:
        UserError: if `path` is neither, or a folder in it cannot be read; and what `report` raises.
    """
    if path.is_dir():
        found = _judged(list(_in_folder(path)), lambda name: (path / name).open("rb"))
    else:
        with opened_zip(path) as archive:
            found = _judged(list(_in_zip(archive)), lambda name: cast(BinaryIO, archive.open(name)))
    used = {table.relative_to(path).as_posix() for table in tables if table.is_relative_to(path)}
    found = [one for one in found if one.name not in used]
    tally = Tally(str(path), "files")
    images: dict[str, str] = {}
    for name, cause in sorted(found, key=lambda one: one.name):
        if cause:
            tally.add(*cause[:2], shown(name), cause.level)
        elif (plain := plain_name(name)) in images:
            tally.add(*_SAME_NAME[:2], f"{shown(name)} beside {shown(images[plain])}", _SAME_NAME.level)
        else:
            images[plain] = name
    tally.report(len(found), report)
    return [images[name] for name in sorted(images)]


def same_content(open_file: OpenArchive, one: str, other: str) -> bool:
    """Whether two files have the same bytes; False also if one of them cannot be read."""
    try:
        with open_file(one) as first, open_file(other) as second:
            return first.read() == second.read()
    except Exception:  # zip archives raise anything
        return False


def _judged(found: Sequence[_Found], open_file: Callable[[str], BinaryIO]) -> list[_Found]:
    """`found` with the cause of each file that is no image. Looks into files whose names do not say what they are."""

    def look(one: _Found) -> _Found:
        try:
            with open_file(one.name) as stream:
                if not stream.read(1):
                    return one._replace(not_taken=_EMPTY)
                stream.seek(0)
                if is_image(stream):
                    return one
                archive = one.name.lower().endswith(NAMES_OF_ARCHIVES)
                return one._replace(not_taken=_ARCHIVE if archive else _NO_IMAGE)
        except Exception as error:  # zip archives raise anything: encrypted, damaged, of an unknown compression …
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            return one._replace(not_taken=_Cause("unreadable file", f"they cannot be read ({reason})", "error"))

    clear = [one for one in found if one.not_taken or named_as_image(one.name)]
    unclear = [one for one in found if not (one.not_taken or named_as_image(one.name))]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [*clear, *pool.map(look, unclear)]


def _in_folder(root: Path) -> Iterator[_Found]:
    """All that is in `root`. Links to folders come last, so that of a folder and a link to it the folder is listed.

    Raises:
        UserError: if a folder cannot be read.
    """
    folders, links = deque([("", os.path.realpath(root))]), deque[str]()
    seen: set[str] = set()
    while folders or links:
        if not folders:
            link = links.popleft()
            folders.append((link, os.path.realpath(root / link)))
        folder, real = folders.popleft()
        if real in seen:
            yield _Found(folder, _LISTED)
            continue
        seen.add(real)
        for entry in _entries(root / folder):
            name = folder + entry.name
            if _is_hidden(entry.name):
                yield _Found(name, _HIDDEN)
            elif (is_folder := _is_folder(entry)) is None:
                yield _Found(name, _BROKEN)
            elif not is_folder:
                yield _Found(name, None if entry.is_file() else _ODD)
            elif entry.is_symlink():
                links.append(f"{name}/")
            else:
                folders.append((f"{name}/", os.path.join(real, entry.name)))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from None


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether `entry` is a folder, or a link to one; None for a link to what cannot be reached."""
    try:
        return stat.S_ISDIR(entry.stat().st_mode) if entry.is_symlink() else entry.is_dir()
    except OSError:
        return None


def _in_zip(archive: zipfile.ZipFile) -> Iterator[_Found]:
    """All that is in `archive`, each hidden folder as one."""
    hidden: set[str] = set()
    for member in archive.infolist():
        if member.filename.endswith(("/", "\\")):
            continue
        parts = plain_name(member.filename).split("/")
        depth = next((depth for depth, part in enumerate(parts, 1) if _is_hidden(part)), None)
        if depth:
            hidden.add("/".join(parts[:depth]))
        else:
            yield _Found(member.filename, _BROKEN if stat.S_ISLNK(member.external_attr >> 16) else None)
    yield from (_Found(name, _HIDDEN) for name in sorted(hidden))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM
