"""Asks the sites of a job: each is sent what it lacks of the aggregate, and a quorum has to answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from nvflare.app_common.abstract.fl_model import FLModel

from pt_peft import reasons
from pt_peft.environment import Code, own_code
from pt_peft.errors import UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import Stage, sends_model
from pt_peft.federation.protocol import Server
from pt_peft.federation.reports import ChoiceReport, EvaluationReport, StatisticsReport, TrainingReport
from pt_peft.schema import parse
from pt_peft_flare.console import console
from pt_peft_flare.round_results import RoundResults

Report = TypeVar("Report", bound=TrainingReport | EvaluationReport | StatisticsReport | ChoiceReport)


class JobFailed(Exception):
    """The job cannot go on; the message is for the lead."""


@dataclass(frozen=True)
class Delivery:
    """A payload down, the same for each of its targets."""

    targets: list[str]
    """Names of sites."""
    payload: Tensors
    since: int
    """Number of finished rounds whose aggregate the targets are taken to hold already."""
    taken: int | None = None
    """Round of the targets' last result that was taken, -1 if none; None where a site keeps nothing that depends on
    it."""


@dataclass(frozen=True)
class SiteTask:
    """A task for sites, with what each of them gets."""

    name: str
    """FLARE's: ``train`` or ``validate``, or `STATISTICS`."""
    round_number: int
    """From 0; the number of all rounds for the final evaluation; of a stage of statistics that of the rounds before."""
    rounds: int
    """Number of all rounds."""
    timeout_s: int
    """Seconds until a site that has not answered is left out."""
    silence_s: int
    """Seconds without a sign of life after which a site is left out, if enough others have answered."""
    min_sites: int
    """Answers that are enough."""
    deliveries: list[Delivery]
    stage: Stage | None = None
    """Of the statistics that it asks for."""

    @property
    def when(self) -> str:
        """In words."""
        if self.stage:
            return str(self.stage)
        return f"round {self.round_number + 1}" if self.round_number < self.rounds else "final evaluation"

    @property
    def targets(self) -> list[str]:
        """Names of the sites that get it."""
        return [site for delivery in self.deliveries for site in delivery.targets]


class Sites(Protocol):
    """What a run needs of FLARE's controller."""

    def site_names(self) -> list[str]:
        """Names of the sites that take part, sorted."""
        ...

    def present_sites(self, silence_s: int) -> list[str]:
        """Those of `site_names` that were heard of within `silence_s`, or may still be starting."""
        ...

    def ask(self, task: SiteTask, accept: Callable[[FLModel], Report]) -> RoundResults[Report]:
        """Sends a task and waits for the results, or until its time is up.

        Args:
            task: the task.
            accept: see `RoundResults`.

        Raises:
            JobFailed: if the job is aborted.
        """
        ...

    def event(self, event_type: str) -> None:
        """Fires an event of FLARE's."""
        ...

    def event_with(self, event_type: str, key: str, data: object) -> None:
        """Fires an event of FLARE's, with `data` under `key` of its context."""
        ...


class SiteTasks:
    """Makes the tasks of one job and collects their results.

    Attributes:
        held: by site the number of finished rounds whose aggregate it is known to hold, where tensors rotate.
        taken: by site the round of its last result that was taken.
    """

    def __init__(self, experiment: Experiment, exchange: Exchange, server: Server[Any], sites: Sites):
        """Begins with sites that hold nothing.

        Args:
            experiment: what runs.
            exchange: the experiment's.
            server: has the aggregate.
            sites: whom to ask.
        """
        self.held: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self._experiment = experiment
        self._exchange = exchange
        self._server = server
        self._sites = sites
        self._other_code: dict[str, Code] = {}
        """What sites run that do not run the server's code."""

    def present(self) -> list[str]:
        """Names of the sites that are there."""
        return self._sites.present_sites(self._experiment.federation.silence_s)

    def targets(self) -> list[str]:
        """Names of the sites to ask: those that are there, or all if these are no quorum."""
        sites = self.present()
        if len(sites) < self._experiment.federation.min_sites:
            sites = self._sites.site_names()  # some may come back while the round waits for them
        return sites

    def make(
        self, name: str, number: int, sites: Sequence[str], statistics: Tensors, stage: Stage | None = None
    ) -> SiteTask:
        """A task that sends each site what it lacks of the aggregate, and `statistics`; see `SiteTask`."""
        federation = self._experiment.federation
        remembered = bool(self._exchange.control) or self._experiment.payload.up.remembers
        alike: dict[tuple[int, int | None, int | None], list[str]] = {}  # sites that are sent the same
        for site in sites:
            # What a site holds does not matter where all tensors travel in every round.
            taken = self.taken.get(site, -1) if remembered else None
            alike.setdefault((self.held.get(site, 0), taken, self._server.rank(site)), []).append(site)
        with_model = stage is None or sends_model(stage)
        deliveries = [
            Delivery(
                targets,
                {**(self._server.payload(targets[0], since, number) if with_model else {}), **statistics},
                since,
                taken,
            )
            for (since, taken, _), targets in alike.items()
        ]
        return SiteTask(
            name, number, federation.rounds, federation.round_timeout_s, federation.silence_s, federation.min_sites,
            deliveries, stage,
        )  # fmt: skip

    def collect(
        self,
        task: SiteTask,
        kind: type[Report],
        take: Callable[[str, Report, FLModel], object],
        least: int | None = None,
    ) -> RoundResults[Report]:
        """Gives a task to its sites and collects the results.

        Args:
            task: the task.
            kind: of the sites' reports.
            take: takes a site's name, its checked report and its result; raises UserError or TensorError for a
                malformed result, which leaves the site out.
            least: results that are enough; by default the quorum.

        Raises:
            JobFailed: if they are fewer, or the job is aborted.
        """

        def accept(result: FLModel) -> Report:
            report = self.checked(kind, result)
            take(result.meta["client_name"], report, result)
            return report

        results = self._sites.ask(task, accept)
        if self._exchange.rotating and not (task.stage and not sends_model(task.stage)):
            # A site that was left out is sent all that has ever changed, no matter what it may have kept.
            self.held = dict.fromkeys(results.reports, task.round_number)
        left_out = sorted(results.left_out.items())
        for site, reason in left_out:
            console.warning("%s: %s is left out of task '%s': %s", task.when, site, task.name, reason)
        least = self._experiment.federation.min_sites if least is None else least
        if len(results.reports) < least:
            asked = len(task.targets)
            reasons = "; ".join(f"{site}: {reason}" for site, reason in left_out)
            raise JobFailed(
                f"{task.when}, task '{task.name}': {len(results.reports)} of {asked} sites gave a valid result, "
                f"but federation.min_sites is {least} ({reasons})"
            )
        return results

    def checked(self, kind: type[Report], result: FLModel) -> Report:
        """The report of a result. Raises UserError unless it is one of this kind, of code that may take part."""
        report = parse(kind, result.metrics, "report").checked(self._experiment)
        self._check_code(result.meta["client_name"], report.code)
        return report

    def _check_code(self, site: str, code: Code) -> None:
        """Says so once if `site` runs other code than this server. Raises UserError if that leaves it out."""
        if code == own_code():
            return
        if self._other_code.get(site) != code:
            self._other_code[site] = code
            console.warning("%s runs %s, the server %s", site, _shown(code), _shown(own_code()))
        if self._experiment.federation.code == "same":
            raise UserError("federation.code is 'same'").told_as(reasons.OtherCode())


def _shown(code: Code) -> str:
    return f"version {code.version} (source {code.source}, methods {code.method})"
