"""FLARE's federated statistics over the sites' images, before any training.

FLARE's own controller ends the job where one site fails, waits without end for a silent one, and takes what a site
sends as it is. Here each report is checked, and a site without one is left out with its reason; FLARE's part is the
task, the global statistics and the file of all of them. Its filter of results (``StatisticsPrivacyFilter``) has none:
the cleansers of 2.9.0 take histograms of few images away, but neither their counts nor small bins of others. A
site itself lets no count leave that is too small, and its egress filter looks at that
(`pt_peft.federation.image_statistics`).
"""

import json
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypedDict, cast

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.statistics_spec import Bin, Histogram, HistogramType
from nvflare.app_common.app_constant import StatisticsConstants
from nvflare.app_common.statistics.numeric_stats import get_global_stats
from nvflare.app_common.workflows.statistics_controller import StatisticsController
from pydantic import JsonValue

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.federation.image_statistics import EDGES, FEATURES, ImageReport
from pt_peft.federation.known_names import known_names
from pt_peft.federation.reports import report_bytes
from pt_peft.files import write_atomically
from pt_peft.schema import parse
from pt_peft_flare.console import console, quiet_console
from pt_peft_flare.gate import Inbox
from pt_peft_flare.messages import RETURN_CODES, STATUS, reason_of
from pt_peft_flare.parent.refusals import read_refusals
from pt_peft_flare.participants import Participants
from pt_peft_flare.progress import counting
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.run_context import is_simulation, read_experiment, run_dir
from pt_peft_flare.short_waits import end_without_torch, hasten_simulation
from pt_peft_flare.site_worker import close_host, start_host
from pt_peft_flare.statistics_page import to_html
from pt_peft_flare.whole_paths import simulate_at_any_path

FILE_NAME, PAGE = "image_statistics.json", "image_statistics.html"
COUNT, HISTOGRAM = StatisticsConstants.STATS_COUNT, StatisticsConstants.STATS_HISTOGRAM
STAGES = (StatisticsConstants.STATS_1st_STATISTICS, StatisticsConstants.STATS_2nd_STATISTICS)
"""FLARE asks for counts and ranges first, and then for histograms. Ours have fixed ranges, and sites are asked once."""

_LOOK_S = 0.05


class Statistics(TypedDict):
    """The content of `FILE_NAME`."""

    job: str
    experiment: dict[str, JsonValue]
    edges: dict[str, list[float]]
    """Of each histogram the edges of its bins, see `pt_peft.federation.image_statistics.EDGES`."""
    sites: dict[str, dict[str, JsonValue]]
    """By site its `ImageReport`."""
    left_out: dict[str, dict[str, JsonValue]]
    """By site that has no report, the reason's code and fields, and the ``sentence``."""
    refused: dict[str, str]
    """Sites that did not take the job when it started, with their reasons."""


class ImageStatistics(StatisticsController):
    """Has every site count its images, and writes what they count side by side.

    A site that refuses, fails or is silent until ``federation.round_timeout_s`` is named and left out.
    """

    def __init__(self) -> None:
        """Takes no arguments: the job's `experiment.json` says all of it."""
        super().__init__(
            statistic_configs={COUNT: {}, HISTOGRAM: {}},
            writer_id="statistics_writer",
            min_clients=1,
            enable_pre_run_task=False,
        )
        self._inbox = Inbox(refused=lambda site, why: self._results.refuse(site, why))
        self._participants = Participants()
        self._results: RoundResults[ImageReport] = RoundResults(_unexpected)
        self._timeout_s = 0
        self._name = ""
        """Of the experiment, once it is known."""
        self._asked: list[str] = []
        """Sites that count."""

    def set_communicator(self, communicator: WFCommServer) -> None:
        """Takes FLARE's communicator, whose end imports no torch."""
        super().set_communicator(communicator)
        end_without_torch(communicator)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Prepares the process when the job starts, and ends what it has started."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            if is_simulation(fl_ctx):
                quiet_console()
                hasten_simulation(fl_ctx)
                simulate_at_any_path(fl_ctx)
                start_host(fl_ctx)  # for all sites
            else:
                self._inbox.watch(fl_ctx.get_engine().get_cell())
            self._participants.listen(fl_ctx.get_engine())
            fl_ctx.get_engine().register_app_command(STATUS, self._status)
        elif event_type == EventType.END_RUN:
            close_host()
            if not is_simulation(fl_ctx):
                self._inbox.close()

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Asks all sites once, and writes the files. A failure ends the job with its reason."""
        try:
            experiment = read_experiment(fl_ctx)
            self._inbox.expect(report_bytes(experiment), 0)
            words = known_names(experiment, None) | RETURN_CODES
            self._results = RoundResults(
                lambda result: parse(ImageReport, result.metrics, "report").checked(experiment),
                lambda reason: reason.cleared(words),
            )
            self._timeout_s = experiment.federation.round_timeout_s
            self._name = experiment.name
            self._asked = sites = sorted(client.name for client in fl_ctx.get_engine().get_clients())
            console.info("%s: %d sites count their images", experiment.name, len(sites))
            began = time.monotonic()
            self.statistics_task_flow(abort_signal, fl_ctx, STAGES[-1])
            if abort_signal.triggered:
                return
            waited = round(time.monotonic() - began)  # FLARE waits less for sites that have died
            out, silent = self._participants.out, reasons.NoAnswer(seconds=waited)
            self._results.close({site: out.get(site, silent) for site in sites})
            self._finish(experiment, fl_ctx)
        except (UserError, OSError) as error:
            console.error("the job failed: %s", error)
            self.system_panic(str(error), fl_ctx)

    def broadcast_and_wait(
        self,
        task: Task,
        fl_ctx: FLContext,
        targets: list[Client] | list[str] | None = None,
        min_responses: int = 1,
        wait_time_after_min_received: int = 0,
        abort_signal: Signal | None = None,
    ) -> None:
        """Waits for all sites that can still answer, and no longer than a round may take."""
        task.timeout = self._timeout_s
        self.broadcast(task, fl_ctx, targets, min_responses=0)
        while task.completion_status is None:
            time.sleep(_LOOK_S)
            if (abort_signal and abort_signal.triggered) or not self._is_worth_waiting():
                self.cancel_task(task, fl_ctx=fl_ctx)

    def _is_worth_waiting(self) -> bool:
        """Whether a site still counts. FLARE would wait for those that are shut out or whose result was refused."""
        there = [site for site in self._asked if site not in self._participants.out]
        return self._results.is_reading() or not all(self._results.has_answered(site) for site in there)

    def results_cb(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Takes a site's report, or the reason why there is none."""
        site, result = client_task.client.name, client_task.result
        client_task.result = None
        if result.get_return_code() != ReturnCode.OK:
            self._results.fail(site, reason_of(result))
            return
        self._results.arrived(site)
        try:
            answer = FLModel(metrics=from_shareable(result).data)
        except Exception as error:  # of what a site has sent, which may be anything
            console.warning("%s: its answer cannot be read (%s)", site, type(error).__name__)
            return
        self._results.add(site, answer)

    def _status(self, topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """Answers ``pt-peft status``; empty before sites are asked."""
        return cast(dict[str, Any], counting(self._name, {site: self._doing(site) for site in self._asked}))

    def _doing(self, site: str) -> str:
        """What a site does now, in a few words."""
        return str(self._results.left_out.get(site, "answered" if site in self._results.reports else "counting"))

    def _finish(self, experiment: Experiment, fl_ctx: FLContext) -> None:
        """Writes what was counted. Raises UserError if no site has counted anything."""
        folder, reports, left_out = run_dir(fl_ctx), self._results.reports, sorted(self._results.left_out.items())
        refused = read_refusals(folder)
        without = refused | {site: str(one) for site, one in left_out}
        for site, reason in without.items():
            console.warning("%s is left out: %s", site, reason)
        statistics: Statistics = {
            "job": fl_ctx.get_job_id(),
            "experiment": experiment.model_dump(mode="json"),
            "edges": {name: [*edges] for name, edges in EDGES.items()},
            "sites": {site: report.model_dump(mode="json") for site, report in reports.items()},
            "left_out": {site: one.to_json() for site, one in left_out},
            "refused": refused,
        }
        write_atomically(folder / FILE_NAME, json.dumps(statistics, indent=1).encode())
        write_atomically(folder / PAGE, to_html(experiment, reports, without).encode())
        if not any(report.splits() for report in reports.values()):
            raise UserError(f"no site has counted its images; {folder / FILE_NAME} has the reasons.")
        self.client_statistics = in_flares_form(experiment, reports)
        for stage in STAGES:
            self.global_statistics = get_global_stats(
                self.global_statistics, self.client_statistics, stage, self.statistic_configs, self.precision
            )
        self.post_fn(self.task_name, fl_ctx)
        console.info("statistics  %s", folder / FILE_NAME)
        console.info("page        %s", folder / PAGE)


def _unexpected(result: FLModel) -> ImageReport:
    raise UserError("no report was asked for")


def in_flares_form(experiment: Experiment, reports: Mapping[str, ImageReport]) -> dict[str, dict[str, Any]]:
    """The reports as FLARE's controller holds statistics: by statistic, site, split and feature.

    The bins of ``classes`` are the places of ``data.classes``.
    """
    edges = {"classes": tuple(map(float, range(len(experiment.data.classes) + 1))), **EDGES}
    found: dict[str, dict[str, Any]] = {COUNT: {}, HISTOGRAM: {}}
    for site, report in reports.items():
        splits = report.splits()
        found[COUNT][site] = {split: dict.fromkeys(FEATURES, one.images) for split, one in splits.items()}
        found[HISTOGRAM][site] = {
            split: {name: _histogram(edges[name], getattr(one, name)) for name in FEATURES}
            for split, one in splits.items()
        }
    return found


def _histogram(edges: tuple[float, ...], counts: list[int]) -> Histogram:
    bins = [Bin(low, high, count) for (low, high), count in zip(pairwise(edges), counts, strict=True)]
    return Histogram(HistogramType.STANDARD, bins)
