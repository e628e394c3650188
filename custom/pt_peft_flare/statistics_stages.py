"""The stages of statistics of a job at the server, see `pt_peft.experiment.statistics`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from pt_peft.exchange.tensors import Tensors, payload_bytes
from pt_peft.experiment.admission import STATISTICS
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import FEDERATION_COUNTS, Stage, When, stages, weighs_by_class
from pt_peft.federation.head_statistics import HeadStatistics
from pt_peft.federation.protocol import Server
from pt_peft.federation.reports import ChoiceReport, StatisticsReport
from pt_peft.federation.server import FederationServer
from pt_peft.statistics.moments import COUNTS, Float
from pt_peft_flare.run_record import FinishedStage, StageEntry
from pt_peft_flare.site_tasks import SiteTasks
from pt_peft_flare.wire import come


class StatisticsStages:
    """Goes through the stages at both ends of the rounds; the last one at an end gives the aggregate its head."""

    def __init__(
        self,
        experiment: Experiment,
        server: Server[Any],
        ends: Mapping[str, HeadStatistics],
        tasks: SiteTasks,
        finish: Callable[[FinishedStage], None],
    ):
        """Starts before the first stage.

        Args:
            experiment: what runs.
            server: has the aggregate.
            ends: what the stages give, by end of the rounds.
            tasks: asks the sites.
            finish: is told of each finished stage.
        """
        self._experiment = experiment
        self._server = server
        self._ends = ends
        self._tasks = tasks
        self._finish = finish

    @property
    def class_counts(self) -> Float | None:
        """Training images of all sites by class, float64 (K,), if the sites have sent theirs in plain."""
        if isinstance(self._server, FederationServer) and self._server.class_counts:
            return self._server.federation_counts
        known = [one.class_counts for one in self._ends.values() if one.class_counts is not None]
        return known[-1] if known else None

    def state(self) -> dict[str, Tensors]:
        """What another server needs to go on."""
        return {when: gathered.state() for when, gathered in self._ends.items()}

    def take_over(self, state: Mapping[str, Tensors], record: Sequence[StageEntry]) -> None:
        """Goes on from the `state` of another server and its `record`. Raises TensorError if it is not this job's."""
        for when, gathered in self._ends.items():
            moments = [one for one in record if (one["when"], one["stage"]) == (when, "moments")]
            gathered.take_over(state[when], [site for one in moments for site in one["sites"]])

    def gather(self, when: When, record: Sequence[StageEntry]) -> None:
        """Goes through the stages at one end of the rounds that are not in the `record` yet.

        Raises:
            JobFailed: if one misses the quorum, or the job is aborted.
        """
        done = {(one["when"], one["stage"]) for one in record}
        for stage in stages(self._experiment):
            if stage.when == when and (when, stage.name) not in done:
                self._gather(stage)

    def before_round(self) -> Tensors:
        """Returns the statistics that all sites are sent to train.

        Sites that were not there when they were to send their counts are asked now: their results would have no weight.
        """
        server = self._server
        if not (weighs_by_class(self._experiment) and isinstance(server, FederationServer)):
            return {}
        if newcomers := [site for site in self._tasks.present() if site not in server.class_counts]:
            self._gather(stages(self._experiment)[0], newcomers)
        weighted = self._experiment.training.imbalance == "federation_weights"
        return {FEDERATION_COUNTS: server.federation_counts} if weighted else {}

    def _gather(self, stage: Stage, newcomers: Sequence[str] = ()) -> None:
        """Asks for the statistics of the next stage, or newcomers alone for what the others have sent already.

        Raises:
            JobFailed: if the sites miss the quorum; of newcomers none is needed.
        """
        gathered = self._ends[stage.when]
        sent: dict[str, Tensors] = {}

        def take(site: str, report: StatisticsReport | ChoiceReport, result: FLModel) -> None:
            sent[site] = gathered.check(stage, come(result.params), report)

        started = time.monotonic()
        sites = newcomers or gathered.asked(stage, self._tasks.targets())
        task = self._tasks.make(STATISTICS, stage.round_number, sites, gathered.down(stage), stage)
        kind = ChoiceReport if stage.name == "choice" else StatisticsReport
        results = self._tasks.collect(task, kind, take, 0 if newcomers else None)
        taken = {site: sent[site] for site in results.reports}
        if isinstance(self._server, FederationServer) and (stage.when, stage.name) == ("start", "counts"):
            self._server.class_counts.update({site: one[COUNTS] for site, one in taken.items()})
        made = None if newcomers else gathered.take(stage, taken, results.reports)
        if made:
            self._server.tensors = {**self._server.tensors, **gathered.head(made)}
        bytes_in = {site: payload_bytes(one.payload) for one in task.deliveries for site in one.targets}
        seconds = time.monotonic() - started
        self._finish(FinishedStage(stage, results.reports, results.left_out, taken, made, bytes_in, seconds))
