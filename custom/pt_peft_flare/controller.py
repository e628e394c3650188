"""Federated averaging of exchanged tensors that one bad site does not bring down."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg

from pt_peft.errors import UserError
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, Tensors, payload_bytes
from pt_peft.federation.protocol import Server
from pt_peft.federation.reports import EvaluationReport, TrainingReport
from pt_peft.federation.server import FederationServer
from pt_peft.privacy.claims import claim
from pt_peft.schema import Strict, parse
from pt_peft.worker.handle import WorkerError
from pt_peft_flare.checkpoint import Checkpoint, CheckpointFile
from pt_peft_flare.ckks_contexts import encrypted_server
from pt_peft_flare.console import console, quiet_console
from pt_peft_flare.messages import SINCE, SITES_CHANGED, STATUS, reason_of
from pt_peft_flare.persistor import BEST, ENCRYPTED, EXCHANGE, FINAL
from pt_peft_flare.progress import progress
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.run_context import cloned_from, is_simulation, read_experiment, run_dir
from pt_peft_flare.run_record import FILE_NAME, SPLITS, RunRecord
from pt_peft_flare.short_waits import hasten_simulation, without_torch
from pt_peft_flare.task_notice import give_notice
from pt_peft_flare.tracking import SCALARS, log_scalars, split_scalars
from pt_peft_flare.wire import WireTensors


class JobFailed(Exception):
    """The job cannot go on; the message is for the lead."""


class PeftFedAvg(FedAvg):
    """FedAvg on FLARE, for exchanged tensors.

    In each round every connected site gets the aggregate, reports its validation metrics and returns its trained
    tensors. Keys, shapes, dtypes and finiteness are checked before anything is added; a late, failed or malformed
    result leaves its site out of the round, with the reason. With fewer than ``federation.min_sites`` valid results the
    job stops with an error and the last aggregate on disk. After the last round the final aggregate is evaluated on
    every site's validation and test images.

    All that it needs stands in the job's `experiment.json`.
    """

    def __init__(self, task_check_period: float = 0.02) -> None:
        """Args:
        task_check_period: seconds between looks at what has come in.
        """
        super().__init__(task_check_period=task_check_period, ignore_result_error=True)
        self._results = RoundResults(_unexpected)
        self._record: RunRecord | None = None
        self._best: float | None = None
        self._best_tensors: Tensors = {}
        self._held_by: dict[str, int] = {}
        self._bytes_in: dict[str, int] = {}

    def set_communicator(self, communicator: WFCommServer) -> None:
        super().set_communicator(communicator)
        without_torch(communicator)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type != EventType.START_RUN:
            return
        if is_simulation(fl_ctx):
            quiet_console()
            hasten_simulation(fl_ctx)
        elif earlier := cloned_from(fl_ctx):
            # At once: a clone that is stopped while it starts up can be cloned again.
            CheckpointFile(fl_ctx, fl_ctx.get_job_id(), read_experiment(fl_ctx)).take_over(earlier)
        fl_ctx.get_engine().register_app_command(SITES_CHANGED, _sites_changed)
        fl_ctx.get_engine().register_app_command(STATUS, self._status)

    def _status(self, topic: str, data: dict, fl_ctx: FLContext) -> dict:
        """Answers ``python -m pt_peft_flare status``; empty before the first round begins."""
        if not self._record:
            return {}
        return progress(self._record.content, self._experiment.federation.rounds, self._sites(), self._results)

    def run(self) -> None:
        """All rounds and the final evaluation. A failure ends the job with its reason."""
        try:
            self._run()
        except (UserError, TensorError, WorkerError, JobFailed, OSError) as error:
            self._end_with(str(error))
        except Exception as error:
            self._end_with(f"{type(error).__name__}: {error} (a defect of pt_peft_flare, please report it)")
            raise

    def _end_with(self, reason: str) -> None:
        if self._record:
            try:
                self._record.close("failed", reason)
            except OSError as error:  # a full disk, perhaps the very reason
                reason = f"{reason}; {FILE_NAME} could not be written either ({error})"
        console.error("the job failed: %s", reason)
        self.panic(reason)

    def _run(self) -> None:
        self._experiment = read_experiment(self.fl_ctx)
        federation = self._experiment.federation
        sites = self._sites()
        # Not `load_model`: FLARE would replace the reason of a failure by its own.
        initial = self.persistor.load(self.fl_ctx)
        self._exchange = Exchange.from_json(initial[ModelLearnableKey.META][EXCHANGE])
        if self._experiment.encryption:
            self._server: Server[Any] = encrypted_server(self._experiment, self._exchange, self.fl_ctx)
        else:
            self._server = FederationServer(self._experiment, self._exchange, initial[ModelLearnableKey.WEIGHTS])
        a_round = self._exchange.up(0)
        encrypted = self._experiment.encryption is not None
        nbytes = round_bytes(self._exchange, self._experiment.payload, 0, encrypted=encrypted).up
        self._record = RunRecord(
            run_dir(self.fl_ctx), self._experiment, self.fl_ctx.get_job_id(), sites, a_round, nbytes
        )
        console.info(
            "%s: %d sites, %d rounds, a site sends %d tensors of %.1f kB a round%s",
            self._experiment.name, len(sites), federation.rounds, len(a_round), nbytes / 1000,
            " at most, encrypted" if encrypted else "",
        )  # fmt: skip
        done = self._resume()
        if len(sites) < federation.min_sites:
            raise JobFailed(
                f"experiment.json: field 'federation.min_sites' is {federation.min_sites}, but the job has only "
                f"{len(sites)} site(s): {', '.join(sites)}."
            )
        for self.current_round in range(done, federation.rounds):
            self._train_round(self.current_round)
        self._evaluate_final(federation.rounds)
        self._record.close("finished")
        self._checkpoint.remove()
        folder = run_dir(self.fl_ctx)
        console.info("final adapter  %s", folder / self._file(FINAL))
        console.info("best adapter   %s", folder / self._file(BEST))
        console.info("metrics        %s", folder / FILE_NAME)
        console.info("curves         tensorboard --logdir %s", folder / "tb_events")

    def _resume(self) -> int:
        """Takes over from the job that this one is a clone of and continues. Returns its number of finished rounds."""
        self._checkpoint = CheckpointFile(self.fl_ctx, self.fl_ctx.get_job_id(), self._experiment)
        earlier = cloned_from(self.fl_ctx)
        there = earlier and (self._checkpoint.load() or CheckpointFile(self.fl_ctx, earlier, self._experiment).load())
        if not there:
            if earlier:
                console.warning("job %s, which this one is a clone of, has left no checkpoint: it starts anew", earlier)
            return 0
        console.info("continues job %s after round %d", earlier, there.rounds)
        self._record.continue_from(earlier, there.record)
        if best := there.record["best"]:
            self._best, self._best_tensors = best["val"]["mean"][self._experiment.select_by], there.best
            self._persist(BEST, there.best, best["rounds"], {"metrics": {"val": best["val"]}})
        self._server.take_over(there.tensors, there.rounds)
        self._server.optimizer.state = there.optimizer
        self._persist(FINAL, self._server.tensors, there.rounds, {})
        return there.rounds

    def _train_round(self, round_number: int) -> None:
        server, sites = self._server, self._sites()
        before = server.tensors
        bytes_out = {}
        opened = server.start_round(round_number)

        def accept(result: FLModel) -> TrainingReport:
            report = parse(TrainingReport, result.metrics, "report")
            report.check(self._experiment)
            site = result.meta["client_name"]
            opened.add(site, result.params, report.num_samples)
            bytes_out[site] = payload_bytes(result.params)
            return report

        started = time.monotonic()
        self.event(AppEventType.ROUND_STARTED)
        reports, left_out = self._collect(AppConstants.TASK_TRAIN, sites, round_number, accept)
        notes = server.finish_round(opened, len(sites))
        seconds = time.monotonic() - started
        validation = self._record.add_round(round_number, reports, left_out, self._bytes_in, bytes_out, seconds, notes)
        self._consider(round_number, before, validation)
        self._persist(FINAL, server.tensors, round_number + 1, {})
        self._keep(round_number + 1)
        self.event(AppEventType.ROUND_DONE)
        for site, report in reports.items():
            at_start = split_scalars("val", report.val, self._experiment.data)
            at_start |= split_scalars("own_val", report.own_val, self._experiment.data)
            after = _there(
                {"train/loss": report.train_loss, "privacy/epsilon": report.epsilon, "seconds": report.seconds}
            )
            after |= {"bytes/in": self._bytes_in[site], "bytes/out": bytes_out[site]}
            log_scalars(self.engine, site, round_number, at_start)
            log_scalars(self.engine, site, round_number + 1, after)
        losses = [report.train_loss for report in reports.values() if report.train_loss is not None]
        loss = sum(losses) / len(losses) if losses else None
        spent = max((report.epsilon for report in reports.values() if report.epsilon is not None), default=None)
        self._log_global(round_number, {"val": validation})
        totals = {"train/loss": loss, "privacy/epsilon": spent, "seconds": seconds, **notes}
        log_scalars(self.engine, "global", round_number + 1, _there(totals))
        shown = "" if loss is None else f"  train loss {loss:.3f}"
        shown += "" if spent is None else f"  epsilon of a site at most {spent:.3g}"
        shown += f"  epsilon of the aggregates {notes['client_epsilon']:.3g}" if "client_epsilon" in notes else ""
        console.info(
            "round %d/%d  %d sites%s  %.1f s",
            round_number + 1,
            self._experiment.federation.rounds,
            len(reports),
            shown,
            seconds,
        )

    def _evaluate_final(self, rounds: int) -> None:
        def accept(result: FLModel) -> EvaluationReport:
            report = parse(EvaluationReport, result.metrics, "report")
            report.check(self._experiment)
            return report

        reports, left_out = self._collect(AppConstants.TASK_VALIDATION, self._sites(), rounds, accept)
        summary = self._record.add_final(reports, left_out)
        self._consider(rounds, self._server.tensors, summary["val"])
        self._persist(FINAL, self._server.tensors, rounds, {"metrics": summary})
        for site, report in reports.items():
            for split in SPLITS:
                log_scalars(
                    self.engine, site, rounds, split_scalars(split, getattr(report, split), self._experiment.data)
                )
        self._log_global(rounds, summary)
        for split, metrics in summary.items():
            if metrics:
                what = "the sites' own models" if split.startswith("own_") else "final aggregate"
                console.info(
                    "%s, %s: balanced accuracy %.3f pooled, %.3f mean over %d sites",
                    what, split.removeprefix("own_"), metrics["pooled"]["balanced_accuracy"], metrics["mean"]["balanced_accuracy"],
                    sum(getattr(report, split) is not None for report in reports.values()),
                )  # fmt: skip

    def _collect(
        self, task: str, sites: list[str], round_number: int, accept: Callable[[FLModel], Strict]
    ) -> tuple[dict, dict[str, str]]:
        """Sends each of `sites` what it lacks of the aggregate, and waits for valid results, at most ``federation.round_timeout_s``
        seconds.

        Returns:
            Reports by site, and the reasons of the sites that are left out.

        Raises:
            JobFailed: if the quorum is missed, or the job is aborted.
        """
        federation = self._experiment.federation
        results = RoundResults(accept)
        self._results = results
        alike: dict[tuple, list[str]] = {}  # sites that are sent the same
        for site in sites:
            alike.setdefault((self._holds(site), self._server.rank(site)), []).append(site)
        for (since, _), targets in alike.items():
            payload = self._server.payload(targets[0], since, round_number)
            self._bytes_in |= dict.fromkeys(targets, payload_bytes(payload))
            model = FLModel(
                params_type=ParamsType.FULL,
                params=WireTensors(payload),
                start_round=0,
                current_round=round_number,
                total_rounds=federation.rounds,
                meta={SINCE: since},
            )
            self.send_model(
                task_name=task,
                data=model,
                targets=targets,
                timeout=federation.round_timeout_s,
                callback=lambda result: results.add(result.meta["client_name"], result),
            )
        give_notice(self.fl_ctx)
        while self.get_num_standing_tasks():
            if self.abort_signal.triggered:
                raise JobFailed(
                    f"the job was stopped during task '{task}' of round {round_number + 1}, after {len(results.reports)} of "
                    f"{len(sites)} results; if nobody stopped it, error_log.txt of a site or the server has the cause."
                )
            time.sleep(self._task_check_period)
            self.communicator.check_tasks()  # which FLARE does five times a second, whatever the period is
        results.close(sites, federation.round_timeout_s)
        if self._exchange.rotating:
            # Whoever was left out is sent all that has ever changed, whatever it may have kept.
            self._held_by = dict.fromkeys(results.reports, round_number)
        when = f"round {round_number + 1}" if round_number < federation.rounds else "final evaluation"
        for site, reason in sorted(results.left_out.items()):
            console.warning("%s: %s is left out of task '%s': %s", when, site, task, reason)
        if len(results.reports) < federation.min_sites:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(results.left_out.items()))
            raise JobFailed(
                f"{when}, task '{task}': {len(results.reports)} of {len(sites)} sites gave a valid result, "
                f"but federation.min_sites is {federation.min_sites} ({reasons})"
            )
        return dict(sorted(results.reports.items())), results.left_out

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

    def _sites(self) -> list[str]:
        return sorted(client.name for client in self.engine.get_clients())

    def _consider(self, finished_rounds: int, tensors: Tensors, validation: dict | None) -> None:
        """Keeps `tensors` as the best aggregate if their validation says so; the initial state is no candidate."""
        value = validation["mean"][self._experiment.select_by] if validation else None
        if finished_rounds and value is not None and (self._best is None or value > self._best):
            self._best, self._best_tensors = value, self._server.result(tensors, finished_rounds)
            self._record.set_best(finished_rounds, validation)
            self._persist(BEST, tensors, finished_rounds, {"metrics": {"val": validation}})

    def _persist(self, file_name: str, tensors: Tensors, finished_rounds: int, meta: dict) -> None:
        """Saves what the finished rounds have changed."""
        changed = self._server.result(tensors, finished_rounds)
        if privacy := claim(self._experiment, self._record.content["rounds"]):
            meta = {**meta, "privacy": privacy}
        learnable = make_model_learnable(
            changed, meta_props={"round": finished_rounds, **meta, **self._server.header()}
        )
        self.persistor.save_as(self._file(file_name), learnable, self.fl_ctx)

    def _file(self, name: str) -> str:
        return ENCRYPTED + name if self._experiment.encryption else name

    def _keep(self, finished_rounds: int) -> None:
        """For the case that the server dies."""
        if not is_simulation(self.fl_ctx):
            state = self._server.state(finished_rounds)
            now = Checkpoint(
                finished_rounds, state, self._best_tensors, self._server.optimizer.state, self._record.content
            )
            self._checkpoint.save(now)

    def _holds(self, site: str) -> int:
        """Number of finished rounds whose aggregate `site` is known to hold; no matter where all tensors travel in every
        round.
        """
        return self._held_by.get(site, 0)

    def _log_global(self, finished_rounds: int, summary: dict[str, dict | None]) -> None:
        for split, metrics in summary.items():
            if metrics:
                values = {f"{split}/mean_{name}": value for name, value in metrics["mean"].items() if value is not None}
                pooled = metrics["pooled"]
                values |= {f"{split}/pooled_{name}": pooled[name] for name in SCALARS if pooled.get(name) is not None}
                log_scalars(self.engine, "global", finished_rounds, values)


def _there(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _unexpected(result: FLModel) -> Strict:
    raise UserError("no result was asked for")


def _sites_changed(topic: str, data: dict, fl_ctx: FLContext) -> dict:
    fl_ctx.get_engine().sync_clients_from_main_process()
    return {}
