"""MLflow's and W&B's receivers, with stand-ins for both libraries: they say what the receivers hand to them."""

import importlib
import json
import sys
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.utils.config_service import ConfigService
from nvflare.recipe import ProdEnv, add_experiment_tracking

from curve_data import NAMES, Curves, cross_site_entry, final_entry, round_entry
from helpers import changed
from pt_peft_flare.kits import SERVER_CLASSES
from pt_peft_flare.parent.allowed_components import AllowedComponents
from pt_peft_flare.recipe import PeftRecipe
from pt_peft_flare.round_log import log_confusion, log_cross_site, log_final, log_round

STOCK_MLFLOW = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"
OUR_MLFLOW = "pt_peft_flare.mlflow_receiver.MlflowReceiver"
WANDB = "nvflare.app_opt.tracking.wandb.wandb_receiver.WandBReceiver"
WANDB_ARGS = {"project": "lesions", "group": "all", "job_type": "federated", "name": "first"}


@pytest.fixture
def stand_in(monkeypatch) -> Iterator[Callable[..., None]]:
    """Puts modules in place of others until the test ends, and with them the receivers that import them."""

    def put(**modules: dict[str, Any]) -> None:
        for name, content in modules.items():
            module = ModuleType(name.replace("__", "."))
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    receivers = [path.rpartition(".")[0] for path in (STOCK_MLFLOW, OUR_MLFLOW, WANDB)]
    for name in receivers:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the receiver sets it for the whole process
    yield put
    for name in receivers:
        sys.modules.pop(name, None)


class Mlflow:
    """MLflow's client, as far as the receivers call it."""

    def __init__(self, put: Callable[..., None]):
        self.runs: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        """By name the values of each metric."""
        self.ended: list[str] = []
        self._experiments: dict[str, SimpleNamespace] = {}
        entities = {
            "Metric": namedtuple("Metric", "key value timestamp step"),
            "Param": namedtuple("Param", "key value"),
            "RunTag": namedtuple("RunTag", "key value"),
        }
        put(
            mlflow={"set_tracking_uri": lambda uri: None},
            mlflow__entities=entities,
            mlflow__tracking={},
            mlflow__tracking__client={"MlflowClient": lambda: self},
        )

    def get_experiment_by_name(self, name: str) -> Any:
        return self._experiments.get(name)

    def create_experiment(self, name: str, artifact_location: str, tags: Any = None) -> str:
        self._experiments[name] = SimpleNamespace(experiment_id=name)
        return name

    def create_run(self, experiment_id: str, run_name: str, tags: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name.partition("-job")[0]))

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        for one in metrics:
            self.runs[run_id][one.key].append((one.step, one.value))

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


def stand_in_wandb(put: Callable[..., None], folder: Path) -> None:
    """W&B's functions, which the receiver calls in a process for each site; what they are told goes into files."""
    current: list[Path] = []

    def tell(**said: Any) -> None:
        with open(current[0], "a") as file:
            file.write(json.dumps(said) + "\n")

    def init(name: str, **options: Any) -> Any:
        current.append(folder / f"{name.partition('-job-')[0]}.jsonl")
        tell(begin=options["project"])
        return SimpleNamespace(finish=lambda: tell(end=True))

    put(wandb={"init": init, "log": lambda metrics, step: tell(step=step, metrics=metrics)})


def built(path: str, **arguments: Any) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments)


def drawn(curves: Curves, experiment: Any) -> None:
    """A job of two rounds with all that it draws."""
    for number in range(2):
        log_round(curves.engine, experiment, round_entry(number))
    log_final(curves.engine, experiment, final_entry())
    log_cross_site(curves.engine, experiment, cross_site_entry())
    log_confusion(curves.engine, experiment, final_entry())
    curves.end("finished")


def expected(place: int) -> list[Any]:
    return [(0, pytest.approx(0.5 + place / 100)), (1, pytest.approx(0.55 + place / 100)), (2, pytest.approx(0.7))]


@pytest.mark.parametrize(("path", "others"), [(OUR_MLFLOW, {"global"}), (STOCK_MLFLOW, set())])
def test_mlflow_is_told_each_scalar(path, others, stand_in, tiny, tmp_path):
    mlflow = Mlflow(stand_in)
    experiment = changed(tiny, federation={"rounds": 2}, data={"classes": ["a (b)", "b", "c", "d"]})
    drawn(Curves(tmp_path / "run", experiment, built(path, tracking_uri="http://localhost:5000")), experiment)
    assert set(mlflow.ended) == {*NAMES, *others}
    for place, name in enumerate(NAMES):
        assert mlflow.runs[name]["val/balanced_accuracy"] == expected(place)
        assert mlflow.runs[name]["val_cross_site/SRV_adapter.safetensors"] == [(2, pytest.approx(0.7))]
    if others:
        assert mlflow.runs["global"]["test_pooled/balanced_accuracy"] == [(2, pytest.approx(0.61))]
        assert mlflow.runs["site-1"]["val_auroc/a _b_"], "a name that MLflow takes"


def test_wandb_is_told_each_scalar_of_the_sites(stand_in, tiny, tmp_path):
    stand_in_wandb(stand_in, tmp_path)
    experiment = changed(tiny, federation={"rounds": 2})
    drawn(Curves(tmp_path / "run", experiment, built(WANDB, wandb_args=dict(WANDB_ARGS))), experiment)
    assert {path.stem for path in tmp_path.glob("*.jsonl")} == {*NAMES}
    for place, name in enumerate(NAMES):
        begin, *said, end = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        assert (begin, end) == ({"begin": "lesions"}, {"end": True})
        tag = "val/balanced_accuracy"
        assert [(one["step"], one["metrics"][tag]) for one in said if tag in one["metrics"]] == expected(place)
        assert said[-1]["metrics"]["val_cross_site/SRV_adapter.safetensors"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("kind", "settings", "path"),
    [
        ("mlflow", {"tracking_uri": "http://localhost:5000"}, OUR_MLFLOW),
        ("wandb", {"mode": "online", "wandb_args": WANDB_ARGS}, WANDB),
    ],
)
def test_a_recipes_tracker_passes_the_servers_list(kind, settings, path, stand_in, tmp_path, monkeypatch):
    Mlflow(stand_in)
    stand_in_wandb(stand_in, tmp_path)
    recipe = PeftRecipe(method="norm")
    add_experiment_tracking(recipe, kind, settings)
    recipe.export(str(tmp_path), env=ProdEnv(startup_kit_location=str(tmp_path)))
    app = tmp_path / "norm" / "app"
    components = json.loads((app / "config" / "config_fed_server.json").read_text())["components"]
    (receiver,) = [one for one in components if one["path"] == path]
    assert receiver["args"].items() >= settings.items()
    resources = {"class_allow_list": [*SERVER_CLASSES], "class_list_enforcement_mode": "enforce"}
    monkeypatch.setattr(ConfigService, "get_section", lambda section: resources)
    assert AllowedComponents("config_fed_server.json").validate(str(app)) == ("", {})
    resources["class_allow_list"].remove(path)
    assert (
        f"class '{path}' is not in class_allow_list"
        in AllowedComponents("config_fed_server.json").validate(str(app))[0]
    )
