"""FLARE's controller of a job: hands tasks to the sites and their results to the run."""

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError
from pt_peft.federation.reports import report_bytes
from pt_peft.schema import Strict
from pt_peft.worker.handle import WorkerError
from pt_peft_flare.checkpoint import CheckpointFile
from pt_peft_flare.console import console, quiet_console
from pt_peft_flare.federated_run import Delivery, FederatedRun, JobFailed, SiteTask
from pt_peft_flare.flare_internals import CONTROLLER, TASK_CHECKS
from pt_peft_flare.gate import Inbox
from pt_peft_flare.messages import SINCE, SITES_CHANGED, STATUS, reason_of
from pt_peft_flare.persistor import AdapterPersistor
from pt_peft_flare.progress import progress
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.run_context import cloned_from, is_simulation, read_experiment
from pt_peft_flare.run_record import FILE_NAME
from pt_peft_flare.short_waits import end_without_torch, hasten_simulation
from pt_peft_flare.task_notice import give_notice
from pt_peft_flare.wire import WireTensors, expect

Report = TypeVar("Report", bound=Strict)


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
        self._run: FederatedRun | None = None
        self._inbox = Inbox(refused=self._refused)

    def set_communicator(self, communicator: WFCommServer) -> None:
        """Takes FLARE's communicator, whose end imports no torch."""
        super().set_communicator(communicator)
        end_without_torch(communicator)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Prepares the process when the job starts."""
        super().handle_event(event_type, fl_ctx)
        if event_type != EventType.START_RUN:
            return
        if is_simulation(fl_ctx):
            quiet_console()
            hasten_simulation(fl_ctx)
        else:
            self._inbox.watch(fl_ctx.get_engine().get_cell())
            if earlier := cloned_from(fl_ctx):
                # At once: a clone that is stopped while it starts up can be cloned again.
                CheckpointFile(fl_ctx, fl_ctx.get_job_id(), read_experiment(fl_ctx)).take_over(earlier)
        engine = fl_ctx.get_engine()
        engine.register_app_command(SITES_CHANGED, _sites_changed)
        engine.register_app_command(STATUS, self._status)

    def _status(self, topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """Answers ``python -m pt_peft_flare status``; empty before the first round begins."""
        if not self._run:
            return {}
        rounds = self._run.experiment.federation.rounds
        return cast(dict[str, Any], progress(self._run.record.content, rounds, self.site_names(), self._results))

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
        """Names of the sites that are connected, sorted."""
        return sorted(client.name for client in self.engine.get_clients())

    def ask(self, task: SiteTask, accept: Callable[[FLModel], Report]) -> RoundResults[Report]:
        """Sends a task and waits for the results, or until its time is up.

        Args:
            task: the task.
            accept: see `RoundResults`.

        Raises:
            JobFailed: if the job is aborted.
        """
        results = RoundResults(accept)
        self._results = results
        for delivery in task.deliveries:
            self._send(task, delivery, lambda result: results.add(result.meta["client_name"], result))
        give_notice(self.fl_ctx)
        targets = [site for delivery in task.deliveries for site in delivery.targets]
        looks_often = TASK_CHECKS.usable()
        while self.get_num_standing_tasks():
            if self.abort_signal.triggered:
                raise JobFailed(
                    f"the job was stopped during task '{task.name}' of round {task.round_number + 1}, after "
                    f"{len(results.reports)} of {len(targets)} results; if nobody stopped it, error_log.txt of a site "
                    "or the server has the cause."
                )
            time.sleep(self._period_s)
            if looks_often:
                self.communicator.check_tasks()  # FLARE itself looks five times a second, for any period
            if results.refused and results.refused | results.reports.keys() >= set(targets):
                self.cancel_all_tasks()  # FLARE has not seen what was refused, and would wait for more
        results.close(targets, task.timeout_s)
        return results

    def _send(self, task: SiteTask, delivery: Delivery, callback: Callable[[FLModel], object]) -> None:
        model = FLModel(
            params_type=ParamsType.FULL,
            params=WireTensors(delivery.payload),
            start_round=0,
            current_round=task.round_number,
            total_rounds=task.rounds,
            meta={SINCE: delivery.since},
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


def _sites_changed(topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
    fl_ctx.get_engine().sync_clients_from_main_process()
    return {}
