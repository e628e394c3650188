"""The site's side of a job: hands each task to a worker and its result to FLARE."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from pt_peft import reasons
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.encrypted_statistics import decrypted, encrypted
from pt_peft.errors import UserError, one_line, told_as
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, Tensors
from pt_peft.experiment.admission import (
    IMAGE_STATISTICS,
    STATISTICS,
    TASKS,
    asks_image_statistics,
    counted_refusals,
    filter_refusals,
    image_statistics_refusals,
)
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import parted
from pt_peft.model.adapter_file import adapter_header, save_adapter
from pt_peft.worker.handle import Patience, WorkerError
from pt_peft_flare import ledger
from pt_peft_flare.allowed_exchange import read_exchange
from pt_peft_flare.ckks_contexts import site_cipher
from pt_peft_flare.console import quiet_console
from pt_peft_flare.cores import take_all_cores
from pt_peft_flare.job_request import JobRequest, Refused, exchange_asked, job_request
from pt_peft_flare.messages import SINCE, STAGE, TAKEN, failure
from pt_peft_flare.run_context import (
    app_folder,
    config_folder,
    continued_dir,
    deployment,
    is_simulation,
    limit_refusals,
    read_experiment,
    read_site,
    run_dir,
    submitter,
)
from pt_peft_flare.site_worker import RespawningWorker, close_host, start_host
from pt_peft_flare.task_notice import TaskNotices, ignore_early_notices
from pt_peft_flare.wire import come
from pt_peft_flare.work_time import WorkTime

EVALUATED_SPLITS = ["val", "test"]
FINAL_ADAPTER = "final_adapter.safetensors"
"""File with the decrypted last sum of the server, for jobs with ``encryption``."""


class PeftLearner(Executor):
    """Trains, validates and submits the exchanged tensors of one site, or counts its images.

    The job's `experiment.json` and the site's `site.json` say all of it. The work is done by a worker process, which is
    killed when it overruns ``federation.site_timeout_s`` or the job is aborted, and replaced for the next task: a site
    that hangs misses one round.

    With ``encryption`` the worker's tensors are encrypted here, and the server's sum is decrypted.
    """

    def __init__(self) -> None:
        super().__init__()
        ignore_early_notices()
        self._notices: TaskNotices | None = None
        self._job: SiteJob | None = None
        self._noted = False

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Starts and ends the worker host, and waits for notices of tasks."""
        if event_type == EventType.START_RUN:
            self._note_opening(fl_ctx)
            self._notices = TaskNotices(fl_ctx)
            start_host(fl_ctx)
            if is_simulation(fl_ctx):
                quiet_console()
                take_all_cores()
        elif event_type == EventType.BEFORE_PULL_TASK and self._notices:
            self._notices.wait(fl_ctx)
        elif event_type == EventType.END_RUN:
            if self._job:
                self._job.worker.close()
            close_host()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Does one task; a failure is a reply with the reason, never an exception."""
        counts = task_name == IMAGE_STATISTICS and asks_image_statistics(config_folder(fl_ctx))
        if task_name not in TASKS and not counts:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            job = self._opened(fl_ctx)
            with job.work_time.counted():
                patience = Patience(job.seconds_left(), lambda: abort_signal.triggered)
                result = job.do(task_name, shareable, patience).to_shareable()
        except (UserError, TensorError, WorkerError) as error:
            # The sentence stays here. In a simulation, where all sites are one person's, the console has it too.
            self.log_error(fl_ctx, f"task {task_name}: {error}", fire_event=False)
            result = failure(error.reason)
        result.set_header(AppConstants.CURRENT_ROUND, shareable.get_header(AppConstants.CURRENT_ROUND))
        return result

    def _note_opening(self, fl_ctx: FLContext) -> None:
        """Notes in the ledger and in the log that a job has come, from whom and for whom, before any task.

        What is refused right away is there too: such a job may end before its first task.
        """
        folder, asked_by, asked_of = run_dir(fl_ctx), submitter(fl_ctx), deployment(fl_ctx)
        if is_simulation(fl_ctx) and ledger.has(folder, ledger.OPEN):
            return  # a site may start anew for each task
        refused: list[str] = []
        experiment = None
        try:
            experiment = read_experiment(fl_ctx)
            refused += map(str, self._refusals(experiment, fl_ctx))
        except UserError as error:
            refused.append(str(error))
        if experiment:
            asked: JobRequest | Refused = job_request(
                experiment,
                app_folder(fl_ctx),
                fl_ctx.get_identity_name(),
                submitter=asked_by,
                deployment=asked_of,
                limits="refused" if refused else "not checked",
                refused=refused,
            )
        else:
            asked = {"submitter": asked_by, "deployment": asked_of, "refused": refused}
        ledger.append(folder, ledger.opening_entry(fl_ctx.get_job_id(), asked))
        who = f"{asked_by['name']} ({asked_by['role']} of {asked_by['org']})" if asked_by else "nobody who is known"
        whom = ", ".join(asked_of["sites"]) or "no site that is known"
        said = f"this job is from {who}, for {'all sites, now ' if asked_of['everyone'] else ''}{whom}"
        if refused:
            self.log_warning(fl_ctx, one_line(f"{said}; this site refuses it: {' '.join(refused)}"), fire_event=False)
        elif not is_simulation(fl_ctx):
            self.log_info(fl_ctx, one_line(said), fire_event=False)

    def _opened(self, fl_ctx: FLContext) -> "SiteJob":
        """The job. Raises UserError if the site refuses it."""
        if self._job is None:
            experiment = read_experiment(fl_ctx)
            for refusal in self._refusals(experiment, fl_ctx):
                raise refusal
            self._job = self._open(experiment, read_site(fl_ctx), fl_ctx)
        return self._job

    def _refusals(self, experiment: Experiment, fl_ctx: FLContext) -> Iterator[UserError]:
        """Yields all for which the site refuses the job before it builds or counts anything."""
        # First: without the egress filter not even a reason of the site's may leave.
        yield from filter_refusals(experiment, config_folder(fl_ctx))
        site = read_site(fl_ctx)
        if asks_image_statistics(config_folder(fl_ctx)):
            yield from image_statistics_refusals(experiment, site.limits)
        yield from limit_refusals(experiment, site, fl_ctx)
        try:
            continued_dir(fl_ctx)
        except UserError as error:
            yield error

    def _open(self, experiment: Experiment, site: Site, fl_ctx: FLContext) -> "SiteJob":
        """Prepares the site for the job, and notes in the ledger what it counts, before anything leaves.

        Raises:
            UserError: if the site has no key or no images for it.
            WorkerError: if a worker fails.
        """
        name, folder = fl_ctx.get_identity_name(), run_dir(fl_ctx)
        worker = RespawningWorker(experiment, site, folder, fl_ctx)
        exchange = images = cipher = None
        refused: list[str] = []
        try:
            images, _ = worker.call("images", patience=Patience(experiment.federation.site_timeout_s))
            exchange = read_exchange(experiment, site, fl_ctx)
            if experiment.encryption:
                with told_as(reasons.EncryptionKey()):
                    cipher = site_cipher(experiment.encryption, exchange, fl_ctx)
            work_time = WorkTime(folder.parent, folder.name)
            return SiteJob(experiment, name, folder, worker, cipher, exchange, site.limits, work_time)
        except (UserError, WorkerError) as error:
            refused.append(str(error))
            raise
        finally:
            # In a simulation a site may start anew for each task.
            if not (self._noted or (is_simulation(fl_ctx) and ledger.has(folder, ledger.COUNTED))):
                asked = exchange and exchange_asked(experiment, exchange, name)
                if exchange and images and not refused:
                    refused += map(str, counted_refusals(experiment, site.limits, exchange, images["train"], name))
                ledger.append(folder, ledger.counted_entry(fl_ctx.get_job_id(), asked, images, refused))
            self._noted = True


@dataclass(frozen=True)
class SiteJob:
    """A job that a site takes part in."""

    experiment: Experiment
    site_name: str
    run_dir: Path
    worker: RespawningWorker
    cipher: Cipher | None
    """With ``encryption``."""
    exchange: Exchange
    """What travels, at the experiment's own LoRA rank."""
    limits: Limits
    work_time: WorkTime

    def seconds_left(self) -> float:
        """How long the next task may take. Raises OutsideLimits if the site has no time left for the job."""
        worked, timeout = self.work_time.seconds(), self.experiment.federation.site_timeout_s
        self.limits.check_seconds(worked)
        return min(timeout, (self.limits.max_job_seconds or math.inf) - worked)

    def do(self, task: str, shareable: Shareable, patience: Patience) -> DXO:
        """Does one of `TASKS`, or `IMAGE_STATISTICS`.

        Args:
            task: its name.
            shareable: what the server has sent.
            patience: how long the worker may take.

        Raises:
            UserError, TensorError: if the task or the site's settings are wrong.
            WorkerError: if the worker fails or takes too long.
        """
        if task == AppConstants.TASK_SUBMIT_MODEL:
            state, tensors = self.worker.call("local_state", patience=patience)
            return DXO(DataKind.WEIGHTS, data=tensors, meta={AppConstants.CURRENT_ROUND: state["round"]})
        if task == IMAGE_STATISTICS:
            report, _ = self.worker.call("image_statistics", patience=patience)
            return DXO(DataKind.METRICS, data=report)
        if task == AppConstants.TASK_VALIDATION:
            report, _ = self._call("evaluate", shareable, patience, splits=EVALUATED_SPLITS)
            return DXO(DataKind.METRICS, data=report)
        if task == STATISTICS:
            stage = from_shareable(shareable).get_meta_prop(STAGE)
            report, tensors = self._call("statistics", shareable, patience, stage=stage)
            if self.cipher and stage != "choice":
                with told_as(reasons.ExperimentInvalid(field="encryption.largest_value")):
                    tensors = encrypted(self.cipher, tensors, report["num_samples"])
            return DXO(DataKind.WEIGHTS, data=tensors, meta={MetaKey.INITIAL_METRICS: report, STAGE: stage})
        report, tensors = self._call("train", shareable, patience)
        if self.cipher:
            with told_as(reasons.ExperimentInvalid(field="encryption.largest_value")):
                tensors = self.cipher.encrypt(tensors, self.experiment.aggregation.weight(report["num_samples"]))
        meta = {MetaKey.INITIAL_METRICS: report, FLMetaKey.NUM_STEPS_CURRENT_ROUND: report["num_samples"]}
        return DXO(DataKind.WEIGHTS, data=tensors, meta=meta)

    def _call(
        self, request: str, shareable: Shareable, patience: Patience, **fields: Any
    ) -> tuple[dict[str, Any], Tensors]:
        dxo = from_shareable(shareable)
        rounds = self.experiment.federation.rounds
        # Other workflows than ours, as FLARE's cross-site evaluation, name no round and send all there is.
        number: int | None = shareable.get_header(AppConstants.CURRENT_ROUND)
        if number is None and request != "evaluate":
            raise TensorError(f"a task for which the site would '{request}' names no round")
        message = {
            "round": rounds if number is None else number,
            "since": dxo.get_meta_prop(SINCE),
            "taken": dxo.get_meta_prop(TAKEN),
            **fields,
        }
        tensors = cast(Tensors, come(dxo.data))  # which the worker checks
        if self.cipher:
            tensors = self._decrypted(self.cipher, tensors, message["round"], request, fields.get("stage"), patience)
            if request == "evaluate" and message["round"] == rounds:
                header = {**adapter_header(self.experiment), "site": self.site_name, "round": rounds}
                save_adapter(self.run_dir / FINAL_ADAPTER, tensors, header)
        return self.worker.call(request, message, tensors, patience)

    def _decrypted(
        self, cipher: Cipher, payload: Tensors, round_number: int, request: str, stage: str | None, patience: Patience
    ) -> Tensors:
        """What has come down, as it would be without encryption."""
        payload, statistics = parted(payload)
        model = Tensors() if stage == "counts" else self._decrypted_model(cipher, payload, round_number, patience)
        if not statistics:
            return model
        with told_as(reasons.EncryptionKey()):
            found = decrypted(cipher, self.experiment, self.exchange, statistics)
        if request == "statistics":
            return model | found.tensors
        return model | found.head(self.experiment, self.exchange, "finish" if round_number else "start")

    def _decrypted_model(self, cipher: Cipher, payload: Tensors, round_number: int, patience: Patience) -> Tensors:
        """What a round starts from. The first starts from what each site draws from the seed itself."""
        if round_number:
            with told_as(reasons.EncryptionKey()):
                return cipher.decrypt_sum(payload)
        if payload:
            raise TensorError(
                "payload is not empty, but an encrypted federation starts from what each site draws itself"
            )
        return self.worker.call("initial_state", patience=patience)[1]
