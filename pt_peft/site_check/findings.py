"""The problems that a check finds, by kind."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pt_peft.data.problems import Level

LIMITS = "limits"
JOB = "job"
"""Kinds of errors for which the site refuses the job as it is: by its limits, and whatever they are."""
SHOWN = 5
"""Examples of a kind that are kept."""


@dataclass
class Finding:
    """All problems of one kind."""

    level: Level
    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list[str])
    """The first few, each a sentence."""


def refuses(finding: Finding) -> bool:
    """Whether a problem is the job's, which the site then refuses, and not the site's to mend."""
    return finding.kind in (LIMITS, JOB)


class Findings:
    """Collects problems."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[Level, str], Finding] = {}

    def error(self, kind: str, message: str) -> None:
        """Adds a problem that keeps the site from joining."""
        self.report(kind, message)

    def warning(self, kind: str, message: str) -> None:
        """Adds a problem that does not keep the site from joining."""
        self.report(kind, message, "warning")

    def report(self, kind: str, message: str, level: Level = "error") -> None:
        """Adds a problem. Satisfies `pt_peft.data.problems.Report`."""
        finding = self._by_kind.setdefault((level, kind), Finding(level, kind))
        finding.count += 1
        if len(finding.examples) < SHOWN:
            finding.examples.append(message)

    def of(self, level: Level) -> list[Finding]:
        """The problems of a level, in the order in which their kinds were found."""
        return [one for one in self._by_kind.values() if one.level == level]

    def lines(self) -> Iterator[str]:
        """Yields the problems as lines of text, errors first."""
        for level in ("error", "warning"):
            for one in self.of(level):
                yield f"{level}: {one.kind} ({one.count})"
                yield from (f"    {example}" for example in one.examples)
                if one.count > len(one.examples):
                    yield f"    … and {one.count - len(one.examples)} more"
