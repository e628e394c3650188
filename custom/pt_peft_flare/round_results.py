"""The results of one task: accepted as they arrive, or left out with the reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from nvflare.app_common.abstract.fl_model import FLModel
from pydantic import JsonValue

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError
from pt_peft.reasons import Reason
from pt_peft.schema import Strict

Report = TypeVar("Report", bound=Strict, covariant=True)


@dataclass(frozen=True)
class LeftOut:
    """Why a site is left out."""

    reason: Reason
    sentence: str
    """The reason in words, all of them this package's or the job's."""

    @classmethod
    def of(cls, reason: Reason) -> Self:
        """In the reason's own words."""
        return cls(reason, reason.sentence())

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, JsonValue]:
        """The reason's code and fields, and the ``sentence``."""
        return {**self.reason.to_json(), "sentence": self.sentence}


class RoundResults(Generic[Report]):
    """Collects the results of one task. A bad one costs its site the round and nothing else."""

    def __init__(
        self,
        accept: Callable[[FLModel], Report],
        cleared: Callable[[Reason], Reason] = lambda reason: reason.cleared(()),
    ):
        """Begins without results.

        Args:
            accept: takes a result and returns the site's report; raises UserError or TensorError for a malformed one.
            cleared: takes from a reason all words that the lead does not know; by default all words.
        """
        self._accept = accept
        self._cleared = cleared
        self.reports: dict[str, Report] = {}
        """Reports of the accepted results, by site."""
        self.left_out: dict[str, LeftOut] = {}
        """Reasons, by site."""
        self._refused: set[str] = set()
        self._unread: set[str] = set()

    def arrived(self, site: str) -> None:
        """Notes that `site` has answered; until `add` accepts the result it counts as unreadable."""
        self._unread.add(site)
        self.fail(site, reasons.Unreadable())

    def add(self, site: str, result: FLModel) -> bool:
        """Takes the result of a site that has `arrived`. Returns whether it was accepted."""
        try:
            self.reports[site] = self._accept(result)
        except (UserError, TensorError) as error:
            # Not the error's own words, which may be the site's: names and values of a report, keys of tensors.
            self.fail(site, _bad_result(error))
            return False
        finally:
            self._unread.discard(site)
        del self.left_out[site]
        self._refused.discard(site)
        return True

    def refuse(self, site: str, sentence: str) -> None:
        """Notes that a result of the site was refused before FLARE saw it."""
        if site not in self.reports:
            self.left_out[site] = LeftOut(reasons.Unreadable(), sentence)
            self._refused.add(site)

    def fail(self, site: str, reason: Reason) -> None:
        """Notes why there is no result of `site`, by a reason of anybody's."""
        self.left_out[site] = LeftOut.of(self._cleared(reason))

    def is_reading(self) -> bool:
        """Whether a result is just being read."""
        return bool(self._unread)

    def has_only_refused_left(self) -> bool:
        """Whether results were refused and none is just being read."""
        return bool(self._refused) and not self.is_reading()

    def has_answered(self, site: str) -> bool:
        """Whether anything has come of `site`."""
        return site in self.reports or site in self.left_out

    def close(self, without: Mapping[str, Reason]) -> None:
        """Gives each site in `without` that has not answered its reason, and sorts the reports by site."""
        for site, reason in without.items():
            if not self.has_answered(site):
                self.fail(site, reason)
        # Sums over them then do not depend on who was first.
        self.reports = dict(sorted(self.reports.items()))


def _bad_result(error: UserError | TensorError) -> Reason:
    """The reason for not taking a result."""
    match error.reason:
        case reasons.Payload(tensor=tensor):
            return reasons.BadResult(what="tensors", tensor=tensor)
        case reasons.Failed(field=field):
            return reasons.BadResult(what="report", field=field)
        case reason:
            return reason
