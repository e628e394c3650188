"""FLARE's controller of a job: hands tasks to the sites and their results to the run."""

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.model_controller import ModelController

from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError, payload_bytes
from pt_peft.experiment.admission import STATISTICS
from pt_peft.experiment.statistics import stages
from pt_peft.federation.reports import report_bytes
from pt_peft.reasons import Reason
from pt_peft.schema import Strict
from pt_peft.worker.handle import WorkerError
from pt_peft_flare.checkpoint import CheckpointFile
from pt_peft_flare.console import console, quiet_console
from pt_peft_flare.federated_run import FederatedRun
from pt_peft_flare.flare_internals import CONTROLLER, TASK_CHECKS
from pt_peft_flare.gate import Inbox
from pt_peft_flare.messages import SINCE, STAGE, STATUS, TAKEN, reason_of
from pt_peft_flare.participants import Participants
from pt_peft_flare.persistor import AdapterPersistor
from pt_peft_flare.progress import progress
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.run_context import cloned_from, is_simulation, read_experiment
from pt_peft_flare.run_record import FILE_NAME
from pt_peft_flare.short_waits import end_without_torch, hasten_simulation
from pt_peft_flare.signs_of_life import QUIET_S, SignsOfLife
from pt_peft_flare.simulated_restarts import restart_killed_sites
from pt_peft_flare.site_tasks import Delivery, JobFailed, SiteTask
from pt_peft_flare.task_notice import give_notice
from pt_peft_flare.whole_paths import simulate_at_any_path
from pt_peft_flare.wire import WireTensors, expect

if TYPE_CHECKING:
    pass

Report = TypeVar("Report", bound=Strict)

_DOING = {
    AppConstants.TASK_TRAIN: "training",
    AppConstants.TASK_VALIDATION: "evaluating",
    STATISTICS: "computing statistics",
}
"""What a site does with a task, by the task's name."""


class PeftFedAvg(ModelController):
    """Federated averaging of exchanged tensors that one bad site does not bring down.

    In each round every connected site gets the aggregate, reports its validation metrics and returns its trained
    tensors. Keys, shapes, dtypes and finiteness are checked before anything is added; a late, failed or malformed
    result leaves its site out of the round, with the reason. With fewer than ``federation.min_sites`` valid results the
    job stops with an error and the last aggregate on disk. After the last round the final aggregate is evaluated on
    every site's validation and test images.

    The job's `experiment.json` says all of it.
    """

    def __init__(self, task_check_period: float = 0.02) -> None:
        """Takes the arguments of the job's config.

        Args:
            task_check_period: seconds between looks at what has come in.
        """
        super().__init__(task_check_period=task_check_period, ignore_result_error=True)
        self._period_s = task_check_period
        self._results: RoundResults[Strict] = RoundResults(_unexpected)
        self._task: SiteTask | None = None
        self._run: FederatedRun | None = None
        self._inbox = Inbox(refused=self._refused)
        self._life = SignsOfLife()
        self._participants = Participants()
        """Sites that cannot answer any more, with the reason."""
        self._over = self._ended = False
        self._sent: Counter[str] = Counter()
        """Bytes of the payloads that each site was sent, raw tensors only."""

    def set_communicator(self, communicator: WFCommServer) -> None:
        """Takes FLARE's communicator, whose end imports no torch."""
        super().set_communicator(communicator)
        end_without_torch(communicator)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Prepares the process when the job starts."""
        super().handle_event(event_type, fl_ctx)
        if self._run:
            self._run.cross_site.hear(event_type, fl_ctx)
        if event_type == EventType.AFTER_TASK_DATA_FILTER:
            self._count(fl_ctx)
        elif event_type == EventType.ABOUT_TO_END_RUN:
            self._over = True
        elif event_type == EventType.CHECK_END_RUN_READINESS and self._run and not self._ended:
            # Once the sites are let go: a simulated one would start again while images are drawn.
            self._ended = True
            self._run.end(self._participants.out)
        elif event_type == EventType.END_RUN and not is_simulation(fl_ctx):
            self._inbox.close()
        if event_type != EventType.START_RUN:
            return
        if is_simulation(fl_ctx):
            quiet_console()
            hasten_simulation(fl_ctx)
            simulate_at_any_path(fl_ctx)
            restart_killed_sites(self._give_up, lambda: self._over)
        else:
            self._inbox.watch(fl_ctx.get_engine().get_cell())
            self._life.listen(self.communicator)  # simulated sites give no signs of life
            if earlier := cloned_from(fl_ctx):
                # At once: a clone that is stopped while it starts up can be cloned again.
                CheckpointFile(fl_ctx, fl_ctx.get_job_id(), read_experiment(fl_ctx)).take_over(earlier)
        engine = fl_ctx.get_engine()
        self._participants.listen(engine)
        engine.register_app_command(STATUS, self._status)

    def _count(self, fl_ctx: FLContext) -> None:
        """Counts a payload that goes to a site now, for the first time or again."""
        site, task = fl_ctx.get_peer_context(), fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if site and task in _DOING:
            payload = from_shareable(fl_ctx.get_prop(FLContextKey.TASK_DATA)).data
            self._sent[site.get_identity_name()] += payload_bytes(payload)

    def _give_up(self, site: str) -> None:
        self._participants.out[site] = reasons.KilledTooOften()

    def _status(self, topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """Answers ``pt-peft status``; empty before the first round begins."""
        if not self._run:
            return {}
        record, experiment = self._run.record, self._run.experiment
        sites = {*self.site_names(), *record.content["sites"], *experiment.federation.sites}
        doing = {site: self._doing(site) for site in sites}
        rounds, asked = experiment.federation.rounds, len(stages(experiment))
        return cast(dict[str, Any], progress(record.content, [*record.rounds], rounds, asked, doing, self._sent))

    def _doing(self, site: str) -> str:
        """What a site does now, in a few words."""
        quiet_s = self._life.silent_s(site)
        if site in self._participants.out:
            return self._participants.out[site].sentence()
        if site not in self.site_names():
            return f"not connected in the {quiet_s:.0f} s of the job"
        if self._results.has_answered(site):
            return str(self._results.left_out.get(site, "answered"))
        if quiet_s > QUIET_S:
            return f"silent for {quiet_s:.0f} s"
        if not self._task or site not in self._task.targets:
            return "waits for the next round"
        return _DOING[self._task.name]

    def run(self) -> None:
        """Runs all rounds and the final evaluation. A failure ends the job with its reason."""
        try:
            CONTROLLER.require()
            self._run = FederatedRun(self.fl_ctx, cast(AdapterPersistor, self.persistor), self)
            bounds = self._run.bounds
            expect(bounds)
            self._inbox.expect(report_bytes(self._run.experiment), bounds.header + (bounds.data or 0))
            self._run.complete()
        except (UserError, TensorError, WorkerError, JobFailed, OSError) as error:
            self._end_with(str(error))
        except Exception as error:
            self._end_with(f"{type(error).__name__}: {error} (a defect of pt_peft_flare, please report it)")
            raise

    def _refused(self, site: str, reason: str) -> None:
        self._results.refuse(site, reason)

    def _end_with(self, reason: str) -> None:
        if self._run:
            try:
                self._run.record.close("failed", reason)
            except OSError as error:  # a full disk, perhaps the very reason
                reason = f"{reason}; {FILE_NAME} could not be written either ({error})"
        console.error("the job failed: %s", reason)
        self.panic(reason)

    def site_names(self) -> list[str]:
        """Names of the sites that take part, sorted."""
        return sorted(client.name for client in self.engine.get_clients())

    def present_sites(self, silence_s: int) -> list[str]:
        """Those of `site_names` that were heard of within `silence_s`, or may still be starting."""
        return [
            site
            for site in self.site_names()
            if not (site in self._participants.out or self._life.is_lost(site, silence_s))
        ]

    def event_with(self, event_type: str, key: str, data: object) -> None:
        """Fires an event of FLARE's, with `data` under `key` of its context."""
        self.fire_event_with_data(event_type, self.fl_ctx, key, data)

    def ask(self, task: SiteTask, accept: Callable[[FLModel], Report]) -> RoundResults[Report]:
        """Sends a task and waits for the results, until its time is up or nobody is worth the wait.

        Sites that take part and are not asked are left out too.

        Args:
            task: the task.
            accept: see `RoundResults`.

        Raises:
            JobFailed: if the job is aborted.
        """
        results = RoundResults(accept, self._cleared)
        self._results, self._task = results, task
        not_asked = {site: self._why_not(site, task) for site in {*self.site_names()}.difference(task.targets)}
        for delivery in task.deliveries:
            self._send(task, delivery, lambda result: results.add(result.meta["client_name"], result))
        give_notice(self.fl_ctx)
        looks_often = TASK_CHECKS.usable()
        while self.get_num_standing_tasks():
            if self.abort_signal.triggered:
                raise JobFailed(
                    f"the job was stopped during task '{task.name}' of {task.when}, after "
                    f"{len(results.reports)} of {len(task.targets)} results; if nobody stopped it, error_log.txt of a "
                    "site or the server has the cause."
                )
            time.sleep(self._period_s)
            if looks_often:
                self.communicator.check_tasks()  # FLARE itself looks five times a second, for any period
            if not self._is_worth_waiting(task, results):
                self.cancel_all_tasks()
        results.close({site: self._why_not(site, task) for site in task.targets} | not_asked)
        return results

    def _cleared(self, reason: Reason) -> Reason:
        return self._run.cleared(reason) if self._run else reason.cleared(())

    def _is_worth_waiting(self, task: SiteTask, results: RoundResults[Any]) -> bool:
        """Whether a site works on `task`, or one that is silent may come back to a round that lacks its answer."""
        missing = [site for site in task.targets if not results.has_answered(site)]
        gone = [site for site in missing if site in self._participants.out]
        silent = [site for site in missing if site not in gone and self._life.is_lost(site, task.silence_s)]
        if not missing:
            return not results.has_only_refused_left()  # FLARE has not seen what was refused, and would wait for more
        if len(gone) + len(silent) < len(missing):
            return True
        answered = len(results.reports)
        return answered < task.min_sites <= answered + len(silent)

    def _why_not(self, site: str, task: SiteTask) -> Reason:
        """Why there is no answer of a site, now."""
        if site in self._participants.out:
            return self._participants.out[site]
        if self._life.is_lost(site, task.silence_s):
            return reasons.Silent(seconds=round(self._life.silent_s(site)))
        return reasons.NoAnswer(seconds=task.timeout_s)

    def _send(self, task: SiteTask, delivery: Delivery, callback: Callable[[FLModel], object]) -> None:
        model = FLModel(
            params_type=ParamsType.FULL,
            params=WireTensors(delivery.payload),
            start_round=0,
            current_round=task.round_number,
            total_rounds=task.rounds,
            meta={SINCE: delivery.since, TAKEN: delivery.taken, STAGE: task.stage and task.stage.name},
        )
        self.send_model(
            task_name=task.name, data=model, targets=delivery.targets, timeout=task.timeout_s, callback=callback
        )

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        if is_unknown_task:
            console.warning("%s: a result that came after its deadline is not used", client_name)
            return False
        if result.get_return_code() != ReturnCode.OK:
            self._results.fail(client_name, reason_of(result))
            return False
        self._results.arrived(client_name)
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)


def _unexpected(result: FLModel) -> Strict:
    raise UserError("no result was asked for")
