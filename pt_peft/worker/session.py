"""What a worker does for its user: the requests of one connection."""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from pt_peft.adapter_file import load_adapter, save_adapter
from pt_peft.backbone import check_digest, weights_file
from pt_peft.data.site_data import SiteData, load_site_data
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.method import build_model, components, exchanged_state
from pt_peft.schema import parse
from pt_peft.site import Site
from pt_peft.tensors import Tensors, check_tensors, specs_of
from pt_peft.training import LocalTrainer, pick_device

LOCAL_ADAPTER = "local_adapter.safetensors"


class Session:
    """Answers the requests of one user. `open` comes first; the rest builds what it needs on first use."""

    def __init__(self) -> None:
        self.requests: dict[str, Callable[[dict, Tensors], tuple[dict, Tensors]]] = {
            "open": self.open,
            "specs": self.specs,
            "initial_state": self.initial_state,
            "train": self.train,
            "evaluate": self.evaluate,
            "local_state": self.local_state,
        }

    def open(self, message: dict, _: Tensors) -> tuple[dict, Tensors]:
        """Takes ``experiment`` and ``site`` (their JSON), the site's ``name``, all ``names``, ``run_dir``, ``threads``."""
        self.experiment = parse(Experiment, message["experiment"], "experiment.json")
        components(self.experiment.method)
        self.site = parse(Site, message["site"], "site.json")
        self.name, self.names = message["name"], message["names"]
        self.run_dir = Path(message["run_dir"])
        return {}, {}

    def specs(self, message: dict, _: Tensors) -> tuple[dict, Tensors]:
        """Shape and dtype of each exchanged tensor, by key; needs no weights."""
        specs = specs_of(exchanged_state(build_model(self.experiment, None)))
        return {key: {"shape": spec.shape, "dtype": spec.dtype} for key, spec in specs.items()}, {}

    def initial_state(self, message: dict, _: Tensors) -> tuple[dict, Tensors]:
        """The exchanged tensors before the first round: a pure function of the experiment."""
        trains_backbone = any(method.trains_backbone for method, _ in components(self.experiment.method))
        return {}, exchanged_state(build_model(self.experiment, self._weights if trains_backbone else None))

    def train(self, message: dict, tensors: Tensors) -> tuple[dict, Tensors]:
        """One round from `tensors`: validation of what came in, then local training."""
        started = time.monotonic()
        tensors = check_tensors(tensors, self._specs)
        if not len(self._data.train):
            raise UserError(f"site {self.name} has no training images.")
        validation = self._evaluate(tensors, "val")
        result = self._trainer.train(self.name, self._data.train, tensors, message["round"])
        self.run_dir.mkdir(parents=True, exist_ok=True)
        save_adapter(self.run_dir / LOCAL_ADAPTER, result.tensors, {"site": self.name, "round": message["round"]})
        reply = {
            "num_samples": result.num_samples,
            "train_loss": result.loss,
            "val": validation,
            "seconds": time.monotonic() - started,
        }
        return reply, result.tensors

    def evaluate(self, message: dict, tensors: Tensors) -> tuple[dict, Tensors]:
        """Metrics of `tensors` on each of the ``splits`` that has images; None for one that has not."""
        started = time.monotonic()
        tensors = check_tensors(tensors, self._specs)
        metrics = {split: self._evaluate(tensors, split) for split in message["splits"]}
        return {**metrics, "seconds": time.monotonic() - started}, {}

    def local_state(self, message: dict, _: Tensors) -> tuple[dict, Tensors]:
        """The site's own tensors after its last local training, also across a restart."""
        tensors, header = load_adapter(self.run_dir / LOCAL_ADAPTER)
        return header, check_tensors(tensors, self._specs)

    def _evaluate(self, tensors: Tensors, name: str) -> dict | None:
        split = getattr(self._data, name)
        return self._trainer.evaluate(tensors, split) if len(split) else None

    @cached_property
    def _weights(self) -> Path:
        weights = weights_file(self.site)
        check_digest(self.experiment.backbone, weights)
        return weights

    @cached_property
    def _data(self) -> SiteData:
        return load_site_data(self.experiment, self.site, self.name, self.names)

    @cached_property
    def _trainer(self) -> LocalTrainer:
        return LocalTrainer(self.experiment, self._weights, pick_device(self.site.device))

    @cached_property
    def _specs(self) -> dict:
        return specs_of(exchanged_state(self._trainer.model))

