"""The site's side of a job: hands each task to a worker and its result to FLARE."""

from pathlib import Path

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

import pt_peft_flare.wire  # noqa: F401  (so that FLARE can read what the server sends)
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError, Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.adapter_file import adapter_header, save_adapter
from pt_peft.worker.handle import Patience, WorkerError
from pt_peft_flare.allowed_exchange import read_exchange
from pt_peft_flare.ckks_contexts import site_cipher
from pt_peft_flare.console import quiet_console
from pt_peft_flare.cores import take_all_cores
from pt_peft_flare.messages import SINCE, failure
from pt_peft_flare.result_filters import check_egress, check_privacy_filters, config_folder
from pt_peft_flare.run_context import is_simulation, read_experiment, read_site, run_dir
from pt_peft_flare.site_worker import RespawningWorker, close_host, start_host
from pt_peft_flare.task_notice import TaskNotices, ignore_early_notices

EVALUATED_SPLITS = ["val", "test"]
FINAL_ADAPTER = "final_adapter.safetensors"
"""With ``encryption``: what the server's last sum decrypts to."""


class PeftLearner(Executor):
    """Trains, validates and submits the exchanged tensors of one site.

    All that it needs stands in the job's `experiment.json` and the site's `site.json`. The work is done by a worker
    process, which is killed when it overruns ``federation.site_timeout_s`` or the job is aborted, and replaced for the
    next task: a site that hangs gives one round up.

    With ``encryption`` the worker's tensors are encrypted here, and the server's sum is decrypted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks = {
            AppConstants.TASK_TRAIN: self._train,
            AppConstants.TASK_VALIDATION: self._validate,
            AppConstants.TASK_SUBMIT_MODEL: self._submit_model,
        }
        ignore_early_notices()
        self._notices: TaskNotices | None = None
        self._worker: RespawningWorker | None = None
        self._cipher: Cipher | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            self._notices = TaskNotices(fl_ctx)
            start_host(fl_ctx)
            if is_simulation(fl_ctx):
                quiet_console()
                take_all_cores()
        elif event_type == EventType.BEFORE_PULL_TASK and self._notices:
            self._notices.wait(fl_ctx)
        elif event_type == EventType.END_RUN:
            if self._worker is not None:
                self._worker.close()
            close_host()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Does one task; a failure is a reply with the reason, never an exception."""
        if task_name not in self._tasks:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            self._open(fl_ctx)
            result = self._tasks[task_name](shareable, abort_signal).to_shareable()
        except (UserError, TensorError, WorkerError) as error:
            self.log_error(fl_ctx, f"task {task_name}: {error}", fire_event=False)
            result = failure(str(error))
        result.set_header(AppConstants.CURRENT_ROUND, shareable.get_header(AppConstants.CURRENT_ROUND))
        return result

    def _open(self, fl_ctx: FLContext) -> None:
        if self._worker is None:
            experiment = read_experiment(fl_ctx)
            self._check_config(
                experiment, config_folder(fl_ctx)
            )  # first: without the filter not even a reason may leave
            site = read_site(fl_ctx)
            site.limits.check(experiment)
            self._experiment = experiment
            self._timeout_s = experiment.federation.site_timeout_s
            self._rounds = experiment.federation.rounds
            self._name, self._run_dir = fl_ctx.get_identity_name(), run_dir(fl_ctx)
            if experiment.encryption:
                self._cipher = site_cipher(experiment, read_exchange(experiment, site, fl_ctx), fl_ctx)
            self._worker = RespawningWorker(experiment, site, self._run_dir, fl_ctx)

    def _check_config(self, experiment: Experiment, folder: Path) -> None:
        """Raises UserError for a job whose filters are not what a site needs."""
        check_egress(self._tasks, folder)
        check_privacy_filters(experiment, folder)

    def _train(self, shareable: Shareable, abort_signal: Signal) -> DXO:
        report, tensors = self._call("train", shareable, abort_signal)
        if self._cipher:
            tensors = self._cipher.encrypt(tensors, self._experiment.aggregation.weight(report["num_samples"]))
        meta = {MetaKey.INITIAL_METRICS: report, FLMetaKey.NUM_STEPS_CURRENT_ROUND: report["num_samples"]}
        return DXO(DataKind.WEIGHTS, data=tensors, meta=meta)

    def _validate(self, shareable: Shareable, abort_signal: Signal) -> DXO:
        report, _ = self._call("evaluate", shareable, abort_signal, splits=EVALUATED_SPLITS)
        return DXO(DataKind.METRICS, data=report)

    def _submit_model(self, shareable: Shareable, abort_signal: Signal) -> DXO:
        state, tensors = self._worker.call("local_state", patience=self._patience(abort_signal))
        return DXO(DataKind.WEIGHTS, data=tensors, meta={AppConstants.CURRENT_ROUND: state["round"]})

    def _call(self, request: str, shareable: Shareable, abort_signal: Signal, **fields) -> tuple[dict, dict]:
        dxo = from_shareable(shareable)
        # Other workflows than ours, as FLARE's cross-site evaluation, name no round and send all there is.
        round_number = shareable.get_header(AppConstants.CURRENT_ROUND)
        message = {
            "round": self._rounds if round_number is None else round_number,
            "since": dxo.get_meta_prop(SINCE),
            **fields,
        }
        patience = self._patience(abort_signal)
        tensors = self._decrypted(dxo.data, message["round"], patience) if self._cipher else dxo.data
        if self._cipher and message["round"] == self._rounds:
            header = {**adapter_header(self._experiment), "site": self._name, "round": self._rounds}
            save_adapter(self._run_dir / FINAL_ADAPTER, tensors, header)
        return self._worker.call(request, message, tensors, patience)

    def _decrypted(self, payload: Tensors, round_number: int, patience: Patience) -> Tensors:
        """Where a round starts. The first starts from what the seed draws, which takes no word from the server."""
        if round_number:
            return self._cipher.decrypt_sum(payload)
        if payload:
            raise TensorError(
                "payload is not empty, but an encrypted federation starts from what each site draws itself"
            )
        return self._worker.call("initial_state", patience=patience)[1]

    def _patience(self, abort_signal: Signal) -> Patience:
        return Patience(self._timeout_s, lambda: abort_signal.triggered)
