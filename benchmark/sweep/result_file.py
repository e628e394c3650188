"""A suite's results: one file of JSON lines, to which one process at a time appends.

A line is a record, see `benchmark.sweep.records`; the first is the suite. A record replaces an earlier one of the same
run or choice, so that a sweep changes nothing but the end of the file while it runs; before and after, the file is
compacted, with what was put there by hand meanwhile. A last line that a crash has cut off is set aside. A cell's
predictions lie within its record: a cell and its logits are written, replaced and compared as one.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from benchmark.sweep.records import (
    RECORDS,
    VERSION,
    AnyRun,
    ChoiceAxes,
    ChoiceRecord,
    Record,
    SuiteRecord,
)
from benchmark.sweep.suite import SUITES, Suite
from pt_peft.errors import UserError
from pt_peft.files import write_atomically
from pt_peft.schema import parse

Key = tuple[int, str]
"""Identifies a run or choice, and orders a compacted file."""


@dataclass
class Contents:
    """The records of a result file, the last of each run and choice."""

    suite: SuiteRecord
    choices: dict[ChoiceAxes, ChoiceRecord] = field(default_factory=dict)
    runs: dict[str, AnyRun] = field(default_factory=dict)
    """Runs by name."""
    lines: dict[Key, bytes] = field(default_factory=dict)
    """The records as they are written, with the end of the line."""
    broken: bytes = b""
    """A last line that was cut off."""

    def add(self, record: Record, line: bytes) -> None:
        """Puts `record`, written as `line`, in place of an earlier one of the same run or choice."""
        self.lines[_key(record)] = line
        if isinstance(record, SuiteRecord):
            self.suite = record
        elif isinstance(record, ChoiceRecord):
            self.choices[record.axes] = record
        else:
            self.runs[record.name] = record

    def compacted(self) -> bytes:
        """The file without what was replaced: suite, choices, then runs in order of their names."""
        return b"".join(line for _, line in sorted(self.lines.items()))


def read(path: Path) -> Contents:
    """Reads a result file. A cut off last line is left out, with a warning.

    Raises:
        UserError: naming the file and the line, if the file is not there, is of another version, or has a damaged line
            or a second suite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(
            f"{path}: is empty; a suite's results begin with a line of kind 'suite'. Removing the file would be right."
        )
    if not _is_json(lines[0]):
        raise UserError(
            f"{path}, line 1: is not valid JSON; it held the suite, so put it back from a copy of the file, or take "
            "line 1 of another result file of the same suite."
        )
    first = _parse(lines[0], f"{path}, line 1")
    if not isinstance(first, SuiteRecord):
        raise UserError(
            f"{path}, line 1: has the kind '{first.kind}'; a suite's results begin with one of kind 'suite'."
        )
    contents = Contents(first)
    contents.add(first, lines[0] + b"\n")
    for number, line in enumerate(lines[1:], 2):
        if number == len(lines) and not _is_json(line):
            contents.broken = line
            print(f"warning: {path}, line {number}: is cut off, and left out.", file=sys.stderr)
            continue
        record = _parse(line, f"{path}, line {number}")
        if isinstance(record, SuiteRecord):
            raise UserError(
                f"{path}, line {number}: begins the results of a suite ('{record.name}'), as line 1 does "
                f"('{first.name}'); a file for each would be right."
            )
        contents.add(record, line + b"\n")
    return contents


def suite_of(contents: Contents, path: Path) -> Suite:
    """This clone's suite of that name, or the one that `contents`, read from `path`, begins with. Raises UserError."""
    own = SUITES / f"{contents.suite.name}.yaml"
    return Suite.read(str(own)) if own.is_file() else parse(Suite, contents.suite.suite, f"{path}, line 1")


class ResultFile:
    """A result file that this process alone appends to; see `open`."""

    def __init__(self, path: Path, contents: Contents):
        self._path = path
        self.contents = contents

    @classmethod
    @contextmanager
    def open(cls, path: Path, suite: SuiteRecord) -> Iterator[Self]:
        """Opens the results of `suite`, new or to go on with; at the end the file is compacted.

        Raises:
            UserError: as `read` does, if another process has the file open, it holds another suite's results, or it
                cannot be written.
        """
        path = path.resolve()  # a link stays, and its file has one lock
        lock = path.with_name(path.name + ".lock")
        try:
            with FileLock(lock, blocking=False):
                results = cls(path, Contents(suite))
                results.compact()
                try:
                    yield results
                finally:
                    results.compact()
        except Timeout:
            raise UserError(f"{path}: another process is writing its results there.") from None

    def append(self, record: Record) -> None:
        """Adds `record` in one piece: after an error the file is as it was. Raises UserError."""
        line = _line(record)
        try:
            with open(self._path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    rest = line
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise UserError(_not_written(self._path, error)) from None
        self.contents.add(record, line)

    def compact(self) -> None:
        """Takes in what the file holds, lines that were put there by hand too, removes what was replaced, and sorts.

        Raises:
            UserError: as `read` does, if the file holds another suite's results, or cannot be written.
        """
        path, suite = self._path, self.contents.suite
        if path.exists():
            contents = read(path)
            if contents.suite.name != suite.name:
                raise UserError(
                    f"{path}: holds results of the suite '{contents.suite.name}', not of '{suite.name}'; another "
                    "file would be right."
                )
            if contents.broken:
                aside = path.with_suffix(".broken")
                _write(aside, contents.broken)
                print(f"warning: {path}: its last line, which was cut off, is now in {aside}.", file=sys.stderr)
            self.contents = contents
        self.contents.add(suite, _line(suite))
        content = self.contents.compacted()
        if not path.exists() or path.read_bytes() != content:
            _write(path, content)


def _key(record: Record) -> Key:
    if isinstance(record, SuiteRecord):
        return 0, ""
    if isinstance(record, ChoiceRecord):
        return 1, json.dumps(list(record.axes.model_dump().values()))
    return 2, record.name


def _line(record: Record) -> bytes:
    return record.model_dump_json().encode() + b"\n"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(line: bytes, source: str) -> Record:
    """Raises UserError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source}: is not valid JSON ({error}); remove the line, and the next run does anew what it held."
        ) from None
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in RECORDS:
        raise UserError(f"{source}: has the kind {kind!r}; {', '.join(RECORDS)} would be right.")
    if kind == "suite" and value.get("version") != VERSION:
        raise UserError(
            f"{source}: is of version {value.get('version')!r} of the file's schema, and this code reads version "
            f"{VERSION}; the code that wrote the file can read it."
        )
    return parse(RECORDS[kind], value, source)


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(_not_written(path, error)) from None


def _not_written(path: Path, error: OSError) -> str:
    return (
        f"{path}: cannot be written ({error.strerror}); the results so far are whole, and the same command goes on "
        "with them."
    )
