"""The rounds of a job at the server: what is sent, aggregated, recorded and kept."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from pt_peft.exchange.ciphertext_layout import MOST_BYTES, Layout
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors, TensorSpec, payload_bytes, payload_sha256
from pt_peft.experiment.prevalence import class_counts
from pt_peft.experiment.sections import Precision
from pt_peft.experiment.statistics import When, stage_bytes, stages, up_specs
from pt_peft.federation.head_statistics import HeadStatistics, SolvedHead
from pt_peft.federation.known_names import known_names
from pt_peft.federation.protocol import Server
from pt_peft.federation.reports import EvaluationReport, TrainingReport
from pt_peft.federation.server import FederationServer
from pt_peft.privacy.claims import claim
from pt_peft.reasons import Reason
from pt_peft_flare.aggregation_events import aggregation_result, selection
from pt_peft_flare.checkpoint import Checkpoint, CheckpointFile
from pt_peft_flare.ckks_contexts import encrypted_server, encrypted_statistics
from pt_peft_flare.console import console
from pt_peft_flare.cross_site import CrossSite
from pt_peft_flare.messages import RETURN_CODES
from pt_peft_flare.persistor import BEST, ENCRYPTED, EXCHANGE, FINAL, AdapterPersistor
from pt_peft_flare.round_file import Summary
from pt_peft_flare.round_log import log_confusion, log_cross_site, log_earlier, log_final, log_round, log_stage
from pt_peft_flare.run_context import cloned_from, is_simulation, read_experiment, run_dir
from pt_peft_flare.run_record import FILE_NAME, SPLITS, FinishedRound, FinishedStage, RunRecord
from pt_peft_flare.site_tasks import JobFailed, Sites, SiteTasks
from pt_peft_flare.statistics_stages import StatisticsStages
from pt_peft_flare.wire import Bounds, come


@dataclass(frozen=True)
class _Best:
    """The best aggregate so far."""

    value: float
    """Its validation, by the experiment's ``select_by``."""
    tensors: Tensors


class FederatedRun:
    """One job's rounds and final evaluation, with the stages of statistics at both ends of the rounds.

    Attributes:
        cross_site: what FLARE's cross-site evaluation finds, if it comes after them.
    """

    def __init__(self, fl_ctx: FLContext, persistor: AdapterPersistor, sites: Sites):
        """Makes the initial tensors and begins the record of the run.

        Args:
            fl_ctx: FLARE's context of the run.
            persistor: makes the initial tensors and keeps the aggregates.
            sites: whom to ask.

        Raises:
            UserError, WorkerError: if the experiment is invalid, or the initial tensors cannot be made.
        """
        self.experiment = read_experiment(fl_ctx)
        self._fl_ctx = fl_ctx
        self._engine = fl_ctx.get_engine()
        self._persistor = persistor
        self._sites = sites
        # Not the controller's `load_model`: FLARE would replace the reason of a failure by its own.
        initial = persistor.load(fl_ctx)
        self._exchange = Exchange.from_json(initial[ModelLearnableKey.META][EXCHANGE])
        self._server = self._new_server(initial[ModelLearnableKey.WEIGHTS])
        self._tasks = SiteTasks(self.experiment, self._exchange, self._server, sites)
        self.cross_site = CrossSite(lambda result: self._tasks.checked(EvaluationReport, result), self.cleared)
        ends: tuple[When, ...] = ("start", "finish")
        statistics: dict[str, HeadStatistics] = {when: self._new_statistics(when) for when in ends}
        self._stages = StatisticsStages(self.experiment, self._server, statistics, self._tasks, self._finish_stage)
        self.record = self._new_record()
        self._checkpoint = CheckpointFile(fl_ctx, fl_ctx.get_job_id(), self.experiment)
        self._best: _Best | None = None
        self._precisions: set[Precision] = set()
        """In which sites have computed what the aggregate is made of."""

    @property
    def bounds(self) -> Bounds:
        """How large the tensors that a site sends may be."""
        if self.experiment.encryption:
            return Bounds.of(self._largest_encrypted)
        statistics = [up_specs(self.experiment, self._exchange, stage) for stage in stages(self.experiment)]
        trained = self.experiment.payload.up.specs(self._exchange.specs)
        sent = {key: spec for specs in (trained, *statistics) for key, spec in specs.items()}
        # A site's own model, which FLARE's cross-site evaluation asks for, is not encoded.
        return Bounds.of(sent, self._exchange.specs)

    @property
    def _largest_encrypted(self) -> dict[str, TensorSpec]:
        """All that may be in an encrypted payload, whichever it is."""
        statistics = {stage.name: up_specs(self.experiment, self._exchange, stage) for stage in stages(self.experiment)}
        plain = statistics.pop("choice", {})
        keys = {key for specs in (self._exchange.up(0), *statistics.values()) for key in Layout(specs).keys}
        return plain | dict.fromkeys(sorted(keys), TensorSpec((MOST_BYTES,), "uint8"))

    def complete(self) -> None:
        """Runs all stages and rounds that are not finished yet, and the final evaluation.

        Raises:
            JobFailed: if a round misses the quorum, or the job is aborted; the last aggregate is on disk.
            UserError: if the checkpoint of a job that this one continues is damaged.
        """
        finished = self._resume()
        federation, sites = self.experiment.federation, self._sites.site_names()
        refusals = [f"{site} did not take the job: {reason}" for site, reason in self.record.content["refused"].items()]
        for refusal in refusals:
            console.warning("%s", refusal)
        if len(sites) < federation.min_sites:
            raise JobFailed(
                f"experiment.json: field 'federation.min_sites' is {federation.min_sites}, but the job has only "
                f"{len(sites)} site(s): {'; '.join([', '.join(sites), *refusals])}."
            )
        self._stages.gather("start", self.record.content["statistics"])
        for number in range(finished, federation.rounds):
            self._sites.event(AppEventType.ROUND_STARTED)
            self._train_round(number)
            self._sites.event(AppEventType.ROUND_DONE)
        self._stages.gather("finish", self.record.content["statistics"])
        self._evaluate_final()
        self.record.close("finished")
        self._checkpoint.remove()
        folder = run_dir(self._fl_ctx)
        console.info("final adapter  %s", folder / self._file(FINAL))
        console.info("best adapter   %s", folder / self._file(BEST))
        console.info("metrics        %s", folder / FILE_NAME)
        console.info("curves         %s", shlex.join(("tensorboard", "--logdir", str(folder / "tb_events"))))

    def cleared(self, reason: Reason) -> Reason:
        """`reason`, which a site gives, without words that are not of this job's."""
        return reason.cleared(known_names(self.experiment, self._exchange) | RETURN_CODES)

    def _new_server(self, tensors: Tensors) -> Server[Any]:
        if self.experiment.encryption:
            return encrypted_server(self.experiment, self._exchange, self._fl_ctx)
        return FederationServer(self.experiment, self._exchange, tensors)

    def _new_statistics(self, when: When) -> HeadStatistics:
        if self.experiment.encryption:
            return encrypted_statistics(self.experiment, self._exchange, when, self._fl_ctx)
        return HeadStatistics(self.experiment, self._exchange, when)

    def _new_record(self) -> RunRecord:
        experiment, sites, first_up = self.experiment, self._sites.site_names(), self._exchange.up(0)
        encrypted = experiment.encryption is not None
        nbytes = round_bytes(self._exchange, experiment.payload, 0, encrypted=encrypted).up
        if rounds := experiment.federation.rounds:
            console.info(
                "%s: %d sites, %d rounds, a site sends %d tensors of %.1f kB a round%s",
                experiment.name, len(sites), rounds, len(first_up), nbytes / 1000,
                " at most, encrypted" if encrypted else "",
            )  # fmt: skip
        else:
            console.info("%s: %d sites, no round of training", experiment.name, len(sites))
        for stage in stages(experiment):
            sent = stage_bytes(experiment, self._exchange, stage).up
            console.info("%s: a site sends %s bytes of statistics", stage, f"{sent:,}")
        return RunRecord(run_dir(self._fl_ctx), experiment, self._fl_ctx.get_job_id(), sites, first_up, nbytes)

    def _resume(self) -> int:
        """Takes over from the job that this one is a clone of and continues. Returns its number of finished rounds."""
        earlier = cloned_from(self._fl_ctx)
        if not earlier:
            return 0
        left = self._checkpoint.load() or CheckpointFile(self._fl_ctx, earlier, self.experiment).load()
        if not left:
            console.warning("job %s, which this one is a clone of, has left no checkpoint: it starts anew", earlier)
            return 0
        finished = len(left.rounds)
        console.info("continues job %s after round %d", earlier, finished)
        self.record.continue_from(earlier, left.record, left.rounds)
        told = [site for one in (*left.rounds, *left.record["statistics"]) for site in one["sites"].values()]
        self._precisions.update(site["precision"] for site in told if site.get("precision"))
        best = left.record["best"]
        value = best["val"]["mean"][self.experiment.select_by] if best else None
        if best and value is not None:
            self._best = _Best(value, left.best)
            self._persist(BEST, left.best, best["rounds"], {"metrics": {"val": best["val"]}})
            self._tell_best(best["rounds"], best["val"])
        self._server.take_over(left.tensors, finished)
        self._stages.take_over(left.statistics, left.record["statistics"])
        self._server.optimizer.state = left.optimizer
        self._tasks.taken = {site: one["round"] for one in left.rounds for site in one["sites"]}
        if finished or self._made(finished):
            self._persist(FINAL, self._server.tensors, finished, {})
        log_earlier(self._engine, self.experiment, left.record["statistics"], self.record.rounds)
        return finished

    def _finish_stage(self, finished: FinishedStage) -> None:
        number = finished.stage.round_number
        self._precisions.update(one.precision for one in finished.reports.values() if one.precision)
        entry = self.record.add_stage(finished)
        if finished.made:
            self._persist(FINAL, self._server.tensors, number, {})
        self._keep(number)
        log_stage(self._engine, entry)

    def _made(self, finished_rounds: int) -> SolvedHead | None:
        """How the head was made, if it was solved after so many rounds."""
        made = [one["head"] for one in self.record.content["statistics"] if one["round"] == finished_rounds]
        return made[-1] if made else None

    def _train_round(self, number: int) -> None:
        server = self._server
        before = server.tensors
        bytes_out: dict[str, int] = {}
        digests: dict[str, str] = {}
        statistics = self._stages.before_round()
        opened = server.start_round(number)

        def take(site: str, report: TrainingReport, result: FLModel) -> None:
            opened.add(site, come(result.params), report.num_samples)
            self._tasks.taken[site] = number
            bytes_out[site], digests[site] = payload_bytes(result.params), payload_sha256(result.params)

        started = time.monotonic()
        task = self._tasks.make(AppConstants.TASK_TRAIN, number, self._tasks.targets(), statistics)
        results = self._tasks.collect(task, TrainingReport, take)
        sites = {*results.reports, *results.left_out, *self.experiment.federation.sites}
        self._sites.event(AppEventType.BEFORE_AGGREGATION)
        notes = server.finish_round(opened, len(sites))
        if server.optimizer.reaches_back:
            self._tasks.held.clear()
        self._precisions.update(one.precision for one in results.reports.values() if one.precision)
        finished = FinishedRound(
            number=number,
            reports=results.reports,
            left_out=results.left_out,
            bytes_in={site: payload_bytes(one.payload) for one in task.deliveries for site in one.targets},
            bytes_out=bytes_out,
            digests=digests,
            shares=opened.shares,
            seconds=time.monotonic() - started,
            notes=notes,
        )
        entry = self.record.add_round(finished)
        result = aggregation_result(entry, server.tensors, self.experiment.select_by)
        self._sites.event_with(AppEventType.AFTER_AGGREGATION, AppConstants.AGGREGATION_RESULT, result)
        self._consider(number, before, entry["val_at_start"])
        self._persist(FINAL, server.tensors, number + 1, {})
        self._keep(number + 1)
        log_round(self._engine, self.experiment, entry)

    def _evaluate_final(self) -> None:
        rounds = self.experiment.federation.rounds
        task = self._tasks.make(AppConstants.TASK_VALIDATION, rounds, self._tasks.targets(), {})
        results = self._tasks.collect(task, EvaluationReport, lambda site, report, result: None)
        final = self.record.add_final(results.reports, results.left_out)
        summary = {split: final[split] for split in SPLITS}
        self._consider(rounds, self._server.tensors, summary["val"])
        self._persist(FINAL, self._server.tensors, rounds, {"metrics": summary})
        log_final(self._engine, self.experiment, final)

    def end(self, gone: Mapping[str, Reason]) -> None:
        """After the last workflow: notes what a cross-site evaluation has found, and hands images to the receivers.

        Args:
            gone: sites that could not answer any more, with the reason.
        """
        self.cross_site.close(gone)
        if self.cross_site.models or self.cross_site.left_out:
            entry = self.record.add_cross_site(self.cross_site)
            try:
                self.record.close("finished")
            except OSError as error:
                console.error("the cross-site evaluation is not in %s (%s)", FILE_NAME, error)
            log_cross_site(self._engine, self.experiment, entry)
        if final := self.record.content["final"]:
            log_confusion(self._engine, self.experiment, final)

    def _consider(self, finished_rounds: int, tensors: Tensors, validation: Summary | None) -> None:
        """Keeps `tensors` as the best aggregate if their validation says so; nothing that has seen no image may be."""
        if validation is None or not (finished_rounds or self._made(finished_rounds)):
            return
        value = validation["mean"][self.experiment.select_by]
        if value is not None and (self._best is None or value > self._best.value):
            self._best = _Best(value, self._server.result(tensors, finished_rounds))
            self.record.set_best(finished_rounds, validation)
            self._persist(BEST, tensors, finished_rounds, {"metrics": {"val": validation}})
            self._tell_best(finished_rounds, validation)

    def _tell_best(self, finished_rounds: int, validation: Summary) -> None:
        """Tells FLARE's components that an aggregate is the best so far."""
        told = selection(finished_rounds, validation, self.experiment.select_by)
        self._sites.event_with(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE, AppConstants.METRICS_SELECTION_INFO, told)

    def _persist(self, file_name: str, tensors: Tensors, finished_rounds: int, meta: dict[str, Any]) -> None:
        """Saves those of `tensors` that the finished rounds have changed."""
        changed = self._server.result(tensors, finished_rounds)
        if privacy := claim(self.experiment, self.record.rounds, self.record.content["statistics"]):
            meta = {**meta, "privacy": privacy}
        if made := self._made(finished_rounds):
            meta = {**meta, "head": made}
        validation = meta.get("metrics", {}).get("val")
        confusion = validation and validation["pooled"]["confusion"]
        if counts := class_counts(self.experiment.data.task, self._stages.class_counts, confusion):
            meta = {**meta, "class_counts": counts.model_dump(mode="json")}
        precision = {"precision": sorted(self._precisions)} if self._precisions else {}
        meta = {"round": finished_rounds, **precision, **meta, **self._server.header()}
        learnable = make_model_learnable(changed, meta)
        self._persistor.save_as(self._file(file_name), learnable, self._fl_ctx)

    def _file(self, name: str) -> str:
        return ENCRYPTED + name if self.experiment.encryption else name

    def _keep(self, finished_rounds: int) -> None:
        """Writes the checkpoint, in case the server dies."""
        if is_simulation(self._fl_ctx):
            return
        best = self._best.tensors if self._best else {}
        state, optimizer = self._server.state(finished_rounds), self._server.optimizer.state
        record = self.record
        self._checkpoint.save(Checkpoint(record.rounds, state, best, optimizer, self._stages.state(), record.content))
