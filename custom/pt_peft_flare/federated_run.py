"""The rounds of a job at the server: what is sent, aggregated, recorded and kept."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from pt_peft import reasons
from pt_peft.environment import Code, own_code
from pt_peft.errors import UserError
from pt_peft.exchange.ciphertext_layout import MOST_BYTES, Layout
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Array, Tensors, TensorSpec, payload_bytes, payload_sha256
from pt_peft.experiment.admission import STATISTICS, TASKS
from pt_peft.experiment.sections import Precision
from pt_peft.experiment.statistics import (
    FEDERATION_COUNTS,
    Stage,
    When,
    sends_model,
    stage_bytes,
    stages,
    up_specs,
    weighs_by_class,
)
from pt_peft.federation.head_statistics import HeadStatistics, SolvedHead
from pt_peft.federation.known_names import known_names
from pt_peft.federation.protocol import Server
from pt_peft.federation.reports import ChoiceReport, EvaluationReport, StatisticsReport, TrainingReport
from pt_peft.federation.server import FederationServer
from pt_peft.privacy.claims import claim
from pt_peft.reasons import Reason
from pt_peft.schema import Strict, parse
from pt_peft.statistics.moments import COUNTS
from pt_peft_flare.checkpoint import Checkpoint, CheckpointFile
from pt_peft_flare.ckks_contexts import encrypted_server, encrypted_statistics
from pt_peft_flare.console import console
from pt_peft_flare.messages import RETURN_CODES
from pt_peft_flare.persistor import BEST, ENCRYPTED, EXCHANGE, FINAL, AdapterPersistor
from pt_peft_flare.round_file import Summary
from pt_peft_flare.round_log import log_final, log_round, log_stage
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.run_context import cloned_from, is_simulation, read_experiment, run_dir
from pt_peft_flare.run_record import FILE_NAME, FinishedRound, FinishedStage, RunRecord
from pt_peft_flare.wire import Bounds, come

Report = TypeVar("Report", bound=Strict)


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


@dataclass(frozen=True)
class _Best:
    """The best aggregate so far."""

    value: float
    """Its validation, by the experiment's ``select_by``."""
    tensors: Tensors


class FederatedRun:
    """One job's rounds and final evaluation."""

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
        ends: tuple[When, ...] = ("start", "finish")
        self._statistics: dict[When, HeadStatistics] = {when: self._new_statistics(when) for when in ends}
        self.record = self._new_record()
        self._checkpoint = CheckpointFile(fl_ctx, fl_ctx.get_job_id(), self.experiment)
        self._best: _Best | None = None
        self._held: dict[str, int] = {}
        """By site the number of finished rounds whose aggregate it is known to hold, where tensors rotate."""
        self._taken: dict[str, int] = {}
        """By site the round of its last result that was taken."""
        self._other_code: dict[str, Code] = {}
        """What sites run that do not run the server's code."""
        self._precisions: set[Precision] = set()
        """In which sites have computed what the aggregate is made of."""

    @property
    def bounds(self) -> Bounds:
        """How large the tensors that a site sends may be."""
        if self.experiment.encryption:
            return Bounds.of(self._largest_encrypted)
        statistics = [up_specs(self.experiment, self._exchange, stage) for stage in stages(self.experiment)]
        trained = self.experiment.payload.up.specs(self._exchange.specs)
        return Bounds.of({key: spec for specs in (trained, *statistics) for key, spec in specs.items()})

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
        self._gather("start")
        for number in range(finished, federation.rounds):
            self._sites.event(AppEventType.ROUND_STARTED)
            self._train_round(number)
            self._sites.event(AppEventType.ROUND_DONE)
        self._gather("finish")
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
        return reason.cleared(known_names(self.experiment, self._exchange) | {*TASKS, *RETURN_CODES})

    def _check_code(self, site: str, code: Code) -> None:
        """Says so once if `site` runs other code than this server. Raises UserError if that leaves it out."""
        if code == own_code():
            return
        if self.experiment.federation.code == "same":
            error = UserError(
                f"the site runs {_shown(code)}, the server {_shown(own_code())}; federation.code is 'same'"
            )
            raise error.told_as(reasons.OtherCode())
        if self._other_code.get(site) != code:
            self._other_code[site] = code
            console.warning("%s runs %s, the server %s", site, _shown(code), _shown(own_code()))

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
        self._server.take_over(left.tensors, finished)
        for when, gathered in self._statistics.items():
            moments = [one for one in left.record["statistics"] if (one["when"], one["stage"]) == (when, "moments")]
            gathered.take_over(left.statistics[when], [site for one in moments for site in one["sites"]])
        self._server.optimizer.state = left.optimizer
        self._taken = {site: one["round"] for one in left.rounds for site in one["sites"]}
        if finished or self._made(finished):
            self._persist(FINAL, self._server.tensors, finished, {})
        return finished

    def _gather(self, when: When) -> None:
        """Goes through the stages at one end of the rounds that are not done yet."""
        done = {(one["when"], one["stage"]) for one in self.record.content["statistics"]}
        for stage in stages(self.experiment):
            if stage.when == when and (when, stage.name) not in done:
                self._gather_stage(stage)

    def _count_newcomers(self) -> None:
        """Asks sites for their counts that were not there when these were asked for: their results have no weight."""
        present = self._sites.present_sites(self.experiment.federation.silence_s)
        if newcomers := [site for site in present if site not in self._class_counts]:
            self._gather_stage(stages(self.experiment)[0], newcomers)

    @property
    def _class_counts(self) -> dict[str, Array]:
        """What the server knows of each site's training images, if it weighs what they send by class."""
        server = self._server
        return server.class_counts if isinstance(server, FederationServer) else {}

    def _gather_stage(self, stage: Stage, newcomers: Sequence[str] = ()) -> None:
        """Asks for the statistics of a stage; the last one gives the aggregate its head.

        Args:
            stage: the next one.
            newcomers: sites that alone are asked, for what the others have sent already.

        Raises:
            JobFailed: if they miss the quorum; of newcomers none is needed.
        """
        gathered = self._statistics[stage.when]
        kind = ChoiceReport if stage.name == "choice" else StatisticsReport
        sent: dict[str, Tensors] = {}

        def accept(result: FLModel) -> ChoiceReport | StatisticsReport:
            report = parse(kind, result.metrics, "report").checked(self.experiment)
            site = result.meta["client_name"]
            self._check_code(site, report.code)
            sent[site] = gathered.check(stage, come(result.params), report)
            return report

        started = time.monotonic()
        task = self._task(STATISTICS, stage.round_number, stage, newcomers)
        results = self._collect(task, accept, 0 if newcomers else self.experiment.federation.min_sites)
        taken = {site: sent[site] for site in results.reports}
        if weighs_by_class(self.experiment) and (stage.when, stage.name) == ("start", "counts"):
            self._class_counts.update({site: one[COUNTS] for site, one in taken.items()})
        self._precisions.update(one.precision for one in results.reports.values() if one.precision)
        made = None if newcomers else gathered.take(stage, taken, results.reports)
        if made:
            self._server.tensors = {**self._server.tensors, **gathered.head(made)}
        finished = FinishedStage(
            stage, results.reports, results.left_out, taken, made, seconds=time.monotonic() - started,
            bytes_in={site: payload_bytes(one.payload) for one in task.deliveries for site in one.targets},
        )  # fmt: skip
        self.record.add_stage(finished)
        if made:
            self._persist(FINAL, self._server.tensors, stage.round_number, {})
        self._keep(stage.round_number)
        log_stage(self._engine, finished)

    def _made(self, finished_rounds: int) -> SolvedHead | None:
        """How the head was made, if it was solved after so many rounds."""
        made = [one["head"] for one in self.record.content["statistics"] if one["round"] == finished_rounds]
        return made[-1] if made else None

    def _train_round(self, number: int) -> None:
        server = self._server
        before = server.tensors
        bytes_out: dict[str, int] = {}
        digests: dict[str, str] = {}
        if weighs_by_class(self.experiment):
            self._count_newcomers()
        opened = server.start_round(number)

        def accept(result: FLModel) -> TrainingReport:
            report = parse(TrainingReport, result.metrics, "report").checked(self.experiment)
            site = result.meta["client_name"]
            self._check_code(site, report.code)
            opened.add(site, come(result.params), report.num_samples)
            self._taken[site] = number
            bytes_out[site], digests[site] = payload_bytes(result.params), payload_sha256(result.params)
            return report

        started = time.monotonic()
        task = self._task(AppConstants.TASK_TRAIN, number)
        results = self._collect(task, accept)
        sites = {*results.reports, *results.left_out, *self.experiment.federation.sites}
        notes = server.finish_round(opened, len(sites))
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
        validation = self.record.add_round(finished)
        self._consider(number, before, validation)
        self._persist(FINAL, server.tensors, number + 1, {})
        self._keep(number + 1)
        log_round(self._engine, self.experiment, finished, validation)

    def _evaluate_final(self) -> None:
        def accept(result: FLModel) -> EvaluationReport:
            report = parse(EvaluationReport, result.metrics, "report").checked(self.experiment)
            self._check_code(result.meta["client_name"], report.code)
            return report

        rounds = self.experiment.federation.rounds
        if self.experiment.server_optimizer.name == "swa":
            self._held.clear()  # its mean has changed tensors of earlier rounds too
        results = self._collect(self._task(AppConstants.TASK_VALIDATION, rounds), accept)
        summary = self.record.add_final(results.reports, results.left_out)
        self._consider(rounds, self._server.tensors, summary["val"])
        self._persist(FINAL, self._server.tensors, rounds, {"metrics": summary})
        log_final(self._engine, self.experiment, results.reports, summary)

    def _task(self, name: str, number: int, stage: Stage | None = None, newcomers: Sequence[str] = ()) -> SiteTask:
        """A task that sends each site that is there what it lacks of the aggregate, and the statistics of a stage."""
        federation = self.experiment.federation
        sites = self._sites.present_sites(federation.silence_s)
        if len(sites) < federation.min_sites:
            sites = self._sites.site_names()  # some may come back while the round waits for them
        statistics = Tensors()
        if stage:
            sites = self._statistics[stage.when].asked(stage, sites)
            statistics = self._statistics[stage.when].down(stage)
            sites = [*newcomers] or sites
        elif name == AppConstants.TASK_TRAIN and self.experiment.training.imbalance == "federation_weights":
            counts = np.sum([*self._class_counts.values()], axis=0)
            statistics = {FEDERATION_COUNTS: counts}
        remembered = bool(self._exchange.control) or self.experiment.payload.up.remembers
        alike: dict[tuple[int, int | None, int | None], list[str]] = {}  # sites that are sent the same
        for site in sites:
            # What a site holds does not matter where all tensors travel in every round.
            taken = self._taken.get(site, -1) if remembered else None
            alike.setdefault((self._held.get(site, 0), taken, self._server.rank(site)), []).append(site)
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

    def _collect(
        self, task: SiteTask, accept: Callable[[FLModel], Report], least: int | None = None
    ) -> RoundResults[Report]:
        """The results of a task. Raises JobFailed if they are fewer than `least`, by default the quorum."""
        results = self._sites.ask(task, accept)
        if self._exchange.rotating and not (task.stage and not sends_model(task.stage)):
            # A site that was left out is sent all that has ever changed, no matter what it may have kept.
            self._held = dict.fromkeys(results.reports, task.round_number)
        left_out = sorted(results.left_out.items())
        for site, reason in left_out:
            console.warning("%s: %s is left out of task '%s': %s", task.when, site, task.name, reason)
        least = self.experiment.federation.min_sites if least is None else least
        if len(results.reports) < least:
            asked = len(task.targets)
            reasons = "; ".join(f"{site}: {reason}" for site, reason in left_out)
            raise JobFailed(
                f"{task.when}, task '{task.name}': {len(results.reports)} of {asked} sites gave a valid result, "
                f"but federation.min_sites is {least} ({reasons})"
            )
        return results

    def _consider(self, finished_rounds: int, tensors: Tensors, validation: Summary | None) -> None:
        """Keeps `tensors` as the best aggregate if their validation says so; nothing that has seen no image may be."""
        if validation is None or not (finished_rounds or self._made(finished_rounds)):
            return
        value = validation["mean"][self.experiment.select_by]
        if value is not None and (self._best is None or value > self._best.value):
            self._best = _Best(value, self._server.result(tensors, finished_rounds))
            self.record.set_best(finished_rounds, validation)
            self._persist(BEST, tensors, finished_rounds, {"metrics": {"val": validation}})

    def _persist(self, file_name: str, tensors: Tensors, finished_rounds: int, meta: dict[str, Any]) -> None:
        """Saves those of `tensors` that the finished rounds have changed."""
        changed = self._server.result(tensors, finished_rounds)
        if privacy := claim(self.experiment, self.record.rounds, self.record.content["statistics"]):
            meta = {**meta, "privacy": privacy}
        if made := self._made(finished_rounds):
            meta = {**meta, "head": made}
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
        statistics = {when: gathered.state() for when, gathered in self._statistics.items()}
        record = self.record
        self._checkpoint.save(Checkpoint(record.rounds, state, best, optimizer, statistics, record.content))


def _shown(code: Code) -> str:
    return f"version {code.version} (source {code.source}, methods {code.method})"
