"""The results of one task: accepted as they arrive, or left out with the reason."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from nvflare.app_common.abstract.fl_model import FLModel

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError
from pt_peft.schema import Strict

Report = TypeVar("Report", bound=Strict, covariant=True)


class RoundResults(Generic[Report]):
    """Collects the results of one task. A bad one costs its site the round and nothing else."""

    def __init__(self, accept: Callable[[FLModel], Report]):
        """Begins without results.

        Args:
            accept: takes a result and returns the site's report; raises UserError or TensorError for a malformed one.
        """
        self._accept = accept
        self.reports: dict[str, Report] = {}
        """Reports of the accepted results, by site."""
        self.left_out: dict[str, str] = {}
        """Reasons, by site."""

    def arrived(self, site: str) -> None:
        """Notes that `site` has answered; until `add` accepts the result it counts as unreadable."""
        self.left_out[site] = "the result could not be read"

    def add(self, site: str, result: FLModel) -> bool:
        """Takes the result of a site that has `arrived`. Returns whether it was accepted."""
        try:
            self.reports[site] = self._accept(result)
        except (UserError, TensorError) as error:
            self.left_out[site] = str(error)
            return False
        del self.left_out[site]
        return True

    def fail(self, site: str, reason: str) -> None:
        """Notes that the site itself says that it failed."""
        self.left_out[site] = reason

    def has_answered(self, site: str) -> bool:
        """Whether anything has come of `site`."""
        return site in self.reports or site in self.left_out

    def close(self, reasons: Mapping[str, str]) -> None:
        """Gives each site in `reasons` that has not answered its reason, and sorts the reports by site."""
        for site, reason in reasons.items():
            if not self.has_answered(site):
                self.left_out[site] = reason
        # Sums over them then do not depend on who was first.
        self.reports = dict(sorted(self.reports.items()))
