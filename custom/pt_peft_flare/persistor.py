"""The adapter on the server: where it starts and where it is kept."""

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.model_desc import ModelDescriptor

from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter
from pt_peft.worker.handle import Patience
from pt_peft_flare.run_context import read_experiment, read_site, run_dir
from pt_peft_flare.site_worker import RespawningWorker, close_host, start_host

FINAL = "adapter.safetensors"
BEST = "best_adapter.safetensors"
ENCRYPTED = "encrypted_"
"""Prefix of both names where the server cannot read what it keeps."""
EXCHANGE = "exchange"
START_S = 600
"""Deadline of the server's own worker, which has to import and perhaps to read a backbone."""


class AdapterPersistor(ModelPersistor):
    """Holds the exchanged tensors only; a backbone is read just to start methods that train its tensors."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Starts and ends the worker host."""
        if event_type == EventType.START_RUN:
            start_host(fl_ctx)  # in a simulation the sites' processes start later and are given it
        elif event_type == EventType.END_RUN:
            close_host()

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """Makes the initial exchanged tensors, a pure function of the experiment.

        Returns:
            The tensors; its metadata has the `Exchange` as JSON under ``exchange``.

        Raises:
            UserError, WorkerError: if the experiment is invalid or they cannot be built.
        """
        worker = RespawningWorker(read_experiment(fl_ctx), read_site(fl_ctx), run_dir(fl_ctx), fl_ctx)
        try:
            exchange, tensors = worker.call("initial_state", patience=Patience(START_S))
        finally:
            worker.close()
        return make_model_learnable(tensors, meta_props={EXCHANGE: exchange})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Writes the round's aggregate to ``adapter.safetensors`` in the run's folder."""
        self.save_as(FINAL, model, fl_ctx)

    def save_as(self, file_name: str, model: ModelLearnable, fl_ctx: FLContext) -> Path:
        """Writes the tensors atomically, with a header: what was trained on what, and the model's own metadata."""
        path = run_dir(fl_ctx) / file_name
        header = {**adapter_header(read_experiment(fl_ctx)), **model[ModelLearnableKey.META]}
        save_adapter(path, model[ModelLearnableKey.WEIGHTS], header)
        return path

    def get_model_inventory(self, fl_ctx: FLContext) -> dict[str, ModelDescriptor]:
        """The adapters saved so far, for FLARE's cross-site evaluation."""
        saved = [run_dir(fl_ctx) / name for name in (FINAL, BEST)]
        return {path.name: ModelDescriptor(path.name, str(path), "safetensors") for path in saved if path.exists()}

    def get_model(self, model_file: str, fl_ctx: FLContext) -> ModelLearnable:
        """The saved adapter `model_file`. Raises UserError if there is none."""
        tensors, header = load_adapter(run_dir(fl_ctx) / Path(model_file).name)
        return make_model_learnable(tensors, meta_props=header)
