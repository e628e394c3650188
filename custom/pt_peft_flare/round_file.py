"""The finished rounds of a job in a file that grows by a line each, so that no process has to hold them."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from pydantic import JsonValue


class Summary(TypedDict):
    """One split's metrics over the sites that have images in it."""

    mean: dict[str, float | None]
    """Unweighted mean over the sites that have the metric; None if none has."""
    pooled: dict[str, Any]
    """Accuracy, balanced accuracy and macro F1, for ``ordinal`` kappa and error too, of all images together, with their
    ``count`` and ``confusion`` counts: exact, from the sum of the sites' counts."""


class RoundEntry(TypedDict):
    """A finished round."""

    round: int
    """From 0."""
    job: str
    """In which it was done: this one, or one that it continues."""
    seconds: float
    sites: dict[str, dict[str, Any]]
    """By site its `TrainingReport`, with ``bytes_in``, ``bytes_out``, ``sha256`` of what it sent, as its ledger has it,
    and ``share``: its part in the aggregate, 0 … 1, null where the rule gives sites none."""
    left_out: dict[str, dict[str, JsonValue]]
    """By site why: the ``code`` and fields of a `pt_peft.reasons.Reason`, and the ``sentence``."""
    val_at_start: Summary | None
    """Validation of the model that the round started from."""
    lora_deviation: NotRequired[float]
    client_epsilon: NotRequired[float]


class RoundFile:
    """Finished rounds in their order, one line of JSON each. What a crash has left behind them does not count."""

    def __init__(self, path: Path):
        """Names the file, which has no rounds yet, whatever may be in it."""
        self.path = path
        self._count = 0
        self._size = 0
        """Bytes of the rounds."""

    def __len__(self) -> int:
        """Number of rounds."""
        return self._count

    def __iter__(self) -> Iterator[RoundEntry]:
        """Reads the rounds one by one."""
        return (json.loads(line) for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """The rounds as they stand in the file, each with its end of line."""
        if self._count:
            with open(self.path, "rb") as file:
                yield from islice(file, self._count)

    def reopen(self, count: int) -> None:
        """Takes the first lines, which an earlier process has written, for the rounds.

        Raises:
            ValueError: if the file has fewer than `count` whole lines.
        """
        try:
            with open(self.path, "rb") as file:
                lines = [len(line) for line in islice(file, count) if line.endswith(b"\n")]
        except FileNotFoundError:
            lines = []
        if len(lines) < count:
            raise ValueError(f"{self.path}: has {len(lines)} rounds, not {count}")
        self._count, self._size = count, sum(lines)

    def append(self, entry: RoundEntry) -> None:
        """Adds a round, on disk before this returns. Raises OSError; the rounds are then as they were."""
        self._grow(json.dumps(entry).encode() + b"\n")
        self._count += 1

    def follow(self, other: "RoundFile") -> None:
        """Adds the rounds of `other` that are not here yet; those before are the same. Raises OSError."""
        if len(other) > self._count:
            with open(other.path, "rb") as file:
                file.seek(self._size)
                self._grow(file.read(other._size - self._size))
            self._count = len(other)

    def _grow(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(content)


def read_rounds(path: Path) -> list[RoundEntry]:
    """The rounds in the file of a job that may be running; none if it is not there."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
