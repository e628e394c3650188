"""A job's curves without a job: a receiver in a folder, and entries of a record with round numbers in them."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ProcessType, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.widgets.streaming import AnalyticsReceiver

from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.tensorboard_receiver import TensorBoardReceiver

NAMES = ("site-1", "site-2", "site-3")


class Curves:
    """The server's side of a job with curves: its engine hands every event to a receiver, TensorBoard's at first."""

    def __init__(self, folder: Path, experiment: Experiment, receiver: AnalyticsReceiver | None = None):
        self.folder = folder
        (folder / "config").mkdir(parents=True)
        (folder / "config" / "experiment.json").write_text(experiment.to_json())
        self.receiver = receiver or TensorBoardReceiver()
        self.engine: Any = SimpleNamespace(
            get_workspace=lambda: SimpleNamespace(
                get_run_dir=lambda job: str(folder), get_app_config_dir=lambda job: str(folder / "config")
            ),
            get_clients=lambda: [SimpleNamespace(name=name) for name in NAMES],
            new_context=self._new_context,
            fire_event=self.receiver.handle_event,
        )
        self.receiver.handle_event(EventType.START_RUN, self.context)

    def _new_context(self) -> contextlib.nullcontext[FLContext]:
        fl_ctx = FLContext()
        fl_ctx.set_prop(ReservedKey.ENGINE, self.engine, private=True, sticky=False)
        fl_ctx.set_prop(ReservedKey.RUN_NUM, "job", private=False, sticky=False)
        return contextlib.nullcontext(fl_ctx)

    @property
    def context(self) -> Any:
        return SimpleNamespace(
            get_engine=lambda: self.engine,
            get_job_id=lambda: "job",
            get_identity_name=lambda: "server",
            get_peer_context=lambda: None,
            get_process_type=lambda: ProcessType.SERVER_JOB,
            get_prop=lambda key, default=None: default,
        )

    def end(self, status: str) -> Path:
        """Ends the job; its folder of curves."""
        (self.folder / "metrics.json").write_text(f'{{"status": "{status}"}}')
        self.receiver.handle_event(EventType.END_RUN, self.context)
        return self.folder / "tb_events"


def metrics(value: float, areas=(0.5, 0.75, None, 1.0)) -> dict[str, Any]:
    """A split's metrics of four classes, as a report has them; the first class of twelve images is the best known."""
    names = ("loss", "accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece")
    confusion = [[9, 3, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [2, 0, 0, 2]]
    known = {**dict.fromkeys(names, value), "quadratic_kappa": None, "mean_absolute_error": None}
    return {**known, "count": 18, "class_auroc": list(areas), "confusion": confusion}


def summary(value: float) -> dict[str, Any]:
    """A split's metrics over three such sites."""
    names = ("loss", "accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece")
    mean = {**dict.fromkeys(names, value), "quadratic_kappa": None, "mean_absolute_error": None}
    confusion = [[3 * count for count in row] for row in metrics(value)["confusion"]]
    pooled = {"accuracy": value, "balanced_accuracy": value + 0.01, "macro_f1": value}
    return {"mean": mean, "pooled": {**pooled, "count": 54, "confusion": confusion}}


def round_entry(number: int) -> Any:
    """A finished round, in which each site is a hundredth better than the one before it."""
    sites = {
        name: {
            "val": metrics(0.5 + number / 20 + place / 100),
            "own_val": metrics(0.4) if number else None,
            "train_loss": 1.0 - number / 20 - place / 10,
            "seconds": 2.0 + place,
            "epsilon": 1.0 + place,
            "bytes_in": 100,
            "bytes_out": 50,
            "share": (0.5, 0.25, 0.25)[place],
        }
        for place, name in enumerate(NAMES)
    }
    notes = {"lora_deviation": 0.25, "client_epsilon": 3.0}
    return {"round": number, "seconds": 5.0, "sites": sites, "val_at_start": summary(0.51 + number / 20), **notes}


def stage_entry() -> Any:
    """The sums before the first round, of which a classifier is made."""
    sites = {name: {"num_samples": 40, "classes_left_out": 0, "epsilon": 0.5} for name in NAMES}
    made = {"kind": "ridge", "penalty": 0.01, "temperature": 1.5}
    return {"when": "start", "stage": "moments", "round": 0, "seconds": 1.0, "sites": sites, "head": made}


def final_entry() -> Any:
    """The final evaluation; no site has a model of its own, and the third no test images."""
    sites = {
        name: {
            "val": metrics(0.7), "test": metrics(0.6) if place < 2 else None, "own_val": None, "own_test": None,
            "seconds": 1.0 + place,
        }
        for place, name in enumerate(NAMES)
    }  # fmt: skip
    return {"sites": sites, "val": summary(0.7), "test": summary(0.6), "own_val": None, "own_test": None}


def cross_site_entry() -> Any:
    """A cross-site evaluation of the final aggregate and the first site's own model, which the second could not run."""
    own = final_entry()
    del own["sites"]["site-2"]
    reason = {"code": "out_of_memory", "sentence": "the site has too little memory for the job"}
    models = {
        "SRV_adapter.safetensors": {"sha256": None, **final_entry(), "left_out": {}},
        "site-1": {"sha256": "0" * 64, **own, "left_out": {"site-2": reason}},
    }
    return {"models": models, "left_out": {"site-2": reason, "site-3": reason}}
