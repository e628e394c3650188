"""Jobs as recipes of FLARE."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.job_def import JobMetaKey
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe import (
    PocEnv,
    ProdEnv,
    SimEnv,
    add_cross_site_evaluation,
    add_experiment_tracking,
    set_per_site_config,
    set_recipe_meta,
)
from nvflare.recipe import spec as flare_recipes
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from helpers import JOBS, ROOT, Run, changed
from pt_peft.errors import UserError
from pt_peft.experiment.admission import filter_refusals
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.sections import Training
from pt_peft.experiment.site import Site
from pt_peft.export.adapter import find_adapter
from pt_peft.presets import committed_jobs, demo
from pt_peft.worker.host_lookup import HOST_VARIABLE
from pt_peft_flare import recipe as recipes
from pt_peft_flare.commands.ledger import look, verify
from pt_peft_flare.job_folder import SERVER_CONFIG, _together, write_job
from pt_peft_flare.parent.job_meta import problem_of_submitted
from pt_peft_flare.recipe import PeftRecipe


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def exported(recipe: PeftRecipe, folder: Path, env=None) -> dict[str, bytes]:
    recipe.export(str(folder), env=env)
    return files(folder / recipe.name)


def config(job: dict[str, bytes], side: str) -> dict[str, Any]:
    return json.loads(job[f"app/config/config_fed_{side}.json"])


@pytest.mark.parametrize("name", committed_jobs())
def test_the_folders_are_those_of_the_job_command(name, tmp_path):
    recipe = PeftRecipe.from_experiment(name) if name == "ridge_probe" else PeftRecipe(method=name)
    assert exported(recipe, tmp_path) == files(JOBS / name)
    assert exported(PeftRecipe.from_experiment(JOBS / name), tmp_path) == files(JOBS / name)


def test_the_example_exports_a_job(tmp_path, monkeypatch, capsys):
    """FLARE takes ``--export`` from the command line when it is imported, which a test has done long ago."""
    monkeypatch.setattr(sys, "argv", ["job.py", "norm"])
    monkeypatch.setattr(flare_recipes, "_peek_recipe_args", lambda: (True, str(tmp_path)))
    monkeypatch.setattr(SimEnv, "deploy", None)
    code = compile((ROOT / "jobs" / "job.py").read_text(), "job.py", "exec")
    with pytest.raises(SystemExit):
        exec(code, {"__name__": "__main__"})
    assert files(tmp_path / "norm") == files(JOBS / "norm")
    assert f"Job exported to: {tmp_path}" in capsys.readouterr().out


def test_arguments_are_fields_of_the_experiment(tiny, tmp_path):
    recipe = PeftRecipe(
        name="mine",
        method="lora",
        method_options={"lora": {"rank": 2}},
        backbone=tiny.backbone,
        data={"source": "lesions", "classes": ["a", "b"], "images_per_site": {"train": 9, "val": 4, "test": 4}},
        partition={"kind": "none"},
        num_rounds=7,
        min_clients=3,
        clients=["east", "north", "west"],
        training=Training(local_epochs=2),
        head={"temperature": False},
        aggregation={"name": "trimmed_mean"},
        server_optimizer={"name": "fedadam"},
        payload={"up": {"name": "int8"}},
        privacy={"client": None},
        key_metric="auroc",
        seed=3,
        num_gpus=2,
        bundle=True,
    )
    job = exported(recipe, tmp_path)
    experiment = Experiment.read(tmp_path / "mine" / "app" / "config" / "experiment.json")
    assert experiment == recipe.experiment
    assert experiment.backbone == tiny.backbone
    assert (experiment.method.name, experiment.method.options) == ("lora", {"lora": {"rank": 2}})
    assert (experiment.data.classes, experiment.select_by, experiment.seed) == (("a", "b"), "auroc", 3)
    federation = experiment.federation
    assert (federation.rounds, federation.min_sites, federation.sites) == (7, 3, ("east", "north", "west"))
    demos = demo("lora")[0].training
    assert experiment.training == demos.model_copy(update={"local_epochs": 2})
    assert (experiment.head.temperature, experiment.aggregation.name) == (False, "trimmed_mean")
    assert (experiment.server_optimizer.name, experiment.payload.up.name) == ("fedadam", "int8")
    meta = json.loads(job["meta.json"])
    assert meta["resource_spec"] == {"@default": {"num_of_gpus": 2}}
    assert meta["deploy_map"] == {"app": ["server", "east", "north", "west"]}
    assert (meta["name"], meta["min_clients"]) == ("mine", 3)
    assert problem_of_submitted(meta) is None
    assert "app/custom/pt_peft/__init__.py" in job
    write_job(experiment, tmp_path / "other" / "mine", bundle=True, num_gpus=2)
    assert job == files(tmp_path / "other" / "mine")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "lorra"}, "lorra"),
        ({"method": "lora", "method_options": {"rank": 4}}, "rank"),
        ({"method": "lora", "num_rounds": -1}, r"PeftRecipe: field 'federation\.rounds' is -1"),
        ({"method": "lora", "training": {"rate": 1}}, r"PeftRecipe: field 'training\.rate' is unknown"),
        ({"method": "lora", "key_metric": "f1"}, r"PeftRecipe: field 'select_by' is \"f1\""),
        ({"method": "lora", "site": {"thread": 1}}, r"site: field 'thread' is unknown; did you mean 'threads'\?"),
        ({"method": "lora", "name": "+"}, r"PeftRecipe: field 'name' is \"\+\""),
        (
            {"method": "lora", "name": "a+b"},
            r"PeftRecipe: name 'a\+b' must start with a letter or digit and may contain",
        ),
        ({"method": "lora", "name": ""}, "PeftRecipe: field 'name' is \"\""),
        ({"method": None}, "PeftRecipe: argument 'method' is None; the name of a method would be right"),
        ({"method": "lora+lora"}, "names a method twice"),
        ({"method": "lora", "method_options": "abc"}, r"PeftRecipe: field 'method\.options' is \"abc\""),
        ({"method": "lora", "backbone": "vit"}, "PeftRecipe: field 'backbone' is \"vit\""),
        ({"method": "lora", "training": "fast"}, "PeftRecipe: field 'training' is \"fast\""),
        ({"method": "lora", "payload": Training()}, r"PeftRecipe: field 'payload\.batch_size' is unknown"),
        ({"method": "lora", "encryption": True}, "PeftRecipe: field 'encryption' is true"),
        ({"method": "lora", "site": 5}, "site: the top level is 5"),
        *(
            ({"method": "lora", "num_gpus": value}, f"PeftRecipe: field 'num_gpus' is {json.dumps(value)}: input")
            for value in (-1, 1.5, math.nan, True, 10**30, "1")
        ),
        ({"method": "lora", "bundle": "no"}, "PeftRecipe: field 'bundle' is \"no\""),
        ({"method": "lora", "statistics": "false"}, "PeftRecipe: field 'statistics' is \"false\""),
    ],
)
def test_what_is_wrong_is_named(arguments, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        PeftRecipe(**arguments).export(str(tmp_path))


def test_several_methods_make_a_name_that_flare_takes(tmp_path):
    assert PeftRecipe(method="dvpt+bitfit").name == "dvpt-bitfit"


def test_statistics_are_the_job_of_the_command(tmp_path):
    """``jobs/statistics`` counts what the demo job of ``lora_vpt`` would train on."""
    expected = files(JOBS / "statistics")
    for recipe in (
        PeftRecipe(method="lora_vpt", statistics=True),
        PeftRecipe.from_experiment(JOBS / "lora_vpt", statistics=True),
        PeftRecipe.from_experiment(JOBS / "statistics"),
    ):
        assert recipe.name == "lora_vpt_statistics", "so that its workspace is not that of the training"
        job = exported(recipe, tmp_path)
        assert json.loads(job.pop("meta.json"))["name"] == recipe.name
        assert job == {name: content for name, content in expected.items() if name != "meta.json"}


@pytest.mark.parametrize(
    "add", [add_cross_site_evaluation, lambda recipe: add_experiment_tracking(recipe, "tensorboard")]
)
def test_nothing_is_added_to_statistics(add):
    with pytest.raises(UserError, match=r"with statistics=True the job counts images alone; add \w+ to a recipe"):
        add(PeftRecipe(method="lora", statistics=True))


def test_what_meta_json_says_besides(tmp_path):
    memory = {"site-1": {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 8}}
    recipe = PeftRecipe(method="norm")
    set_recipe_meta(recipe, JobMetaKey.RESOURCE_SPEC, memory)
    meta = json.loads(exported(recipe, tmp_path)["meta.json"])
    assert meta == {**json.loads((JOBS / "norm" / "meta.json").read_text()), "resource_spec": memory}


@pytest.mark.parametrize("enable", ["enable_log_streaming", "enable_tensor_streaming"])
def test_nothing_leaves_a_site_beside_its_results(enable):
    with pytest.raises(UserError, match=f"{enable}: it would let more leave a site"):
        getattr(PeftRecipe(method="norm"), enable)()


def test_private_counts_are_refused(tmp_path):
    private = {"sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}}
    with pytest.raises(UserError, match="counts of images travel without noise"):
        PeftRecipe(method="lora", privacy=private, statistics=True).export(str(tmp_path))


def test_a_provisioned_federation_gets_no_code(tmp_path):
    env = ProdEnv(startup_kit_location=str(tmp_path))
    recipe = PeftRecipe(method="norm")
    job = exported(recipe, tmp_path, env)
    write_job(recipe.experiment, tmp_path / "other" / "norm", installed=True)
    assert job == files(tmp_path / "other" / "norm")
    assert exported(recipe, tmp_path) == job, "as the last environment takes it"
    assert exported(recipe, tmp_path, PocEnv()) == files(JOBS / "norm")
    bundle = exported(PeftRecipe(method="norm", bundle=True), tmp_path, env)
    assert "app/custom/pt_peft/__init__.py" in bundle


def test_the_simulators_sites_get_their_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = SimEnv(num_clients=2, workspace_root=str(tmp_path / "workspaces"))
    recipe = PeftRecipe(
        method="norm", site={"backbone": "weights.pt", "limits": None, "sites": {"site-2": {"threads": 2}}}
    )
    set_per_site_config(recipe, {"site-1": {"data": {"images": "a.zip"}, "cache": "cache"}})
    exported(recipe, tmp_path, env)
    path = tmp_path / "workspaces" / "norm" / "local" / "site.json"
    weights, images, cache = (str(tmp_path / name) for name in ("weights.pt", "a.zip", "cache"))
    assert json.loads(path.read_text()) == {
        "backbone": weights,
        "limits": None,
        "sites": {"site-2": {"threads": 2}, "site-1": {"data": {"images": images}, "cache": cache}},
    }
    assert exported(recipe, tmp_path, env), "and again, in place of what it has written"

    exported(PeftRecipe(method="norm", site=path), tmp_path, env)
    assert Site.read(path).at("site-1", ["site-1", "site-2"]).data.images == images
    with pytest.raises(
        UserError, match=r"site\.json: exists, and the recipe says nothing about its sites; give it site="
    ):
        exported(PeftRecipe(method="norm"), tmp_path, env)
    for other in (PocEnv(), ProdEnv(startup_kit_location=str(tmp_path))):
        with pytest.raises(UserError, match=rf"are for SimEnv; of {type(other).__name__}, each site has its own"):
            exported(recipe, tmp_path, other)


def test_settings_of_single_sites_alone_leave_the_limits_open(tmp_path):
    recipe = PeftRecipe(method="norm")
    set_per_site_config(recipe, {"site-1": {"threads": 2}})
    exported(recipe, tmp_path, SimEnv(num_clients=2, workspace_root=str(tmp_path / "ws")))
    assert Site.read(tmp_path / "ws" / "norm" / "local" / "site.json").limits == Limits.open()
    with pytest.raises(UserError, match=r"set_per_site_config: sites\.site-1: field 'threads' is 0"):
        set_per_site_config(PeftRecipe(method="norm"), {"site-1": {"threads": 0}})


def test_a_presets_settings_go_along_into_a_simulation_alone(tiny, site, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "open_experiment", lambda given: (tiny, site))
    recipe = PeftRecipe.from_experiment("a preset")
    exported(recipe, tmp_path, SimEnv(num_clients=2, workspace_root=str(tmp_path / "ws")))
    assert Site.read(tmp_path / "ws" / "tiny" / "local" / "site.json") == site
    assert exported(recipe, tmp_path / "poc", PocEnv())


def test_the_simulators_sites_are_the_experiments(tiny, tmp_path):
    recipe = PeftRecipe.from_experiment(changed(tiny, federation={"sites": ["east", "west"]}))
    with pytest.raises(UserError, match=r"SimEnv: its sites are site-1, site-2, but the .* are east, west"):
        recipe.export(str(tmp_path), env=SimEnv(num_clients=2, workspace_root=str(tmp_path / "ws")))
    recipe.export(str(tmp_path), env=SimEnv(clients=["west", "east"], workspace_root=str(tmp_path / "ws")))


@pytest.mark.parametrize(
    ("sites", "sentence"),
    [
        ({"num_clients": 1}, r"SimEnv: field 'federation\.min_sites' must be at most the number of sites"),
        ({"clients": ["site-1", "b", "b"]}, "SimEnv: field 'federation.sites' is .*must differ"),
        ({"clients": ["site-1", "../c"]}, r"SimEnv: field 'federation\.sites\.1' is \"\.\./c\""),
        ({"clients": ["a", "b"]}, "SimEnv: its sites are a, b, but there are settings of site-1"),
    ],
)
def test_sites_that_cannot_be_simulated_are_told_before_the_start(sites, sentence, tmp_path):
    recipe = PeftRecipe(method="norm")
    set_per_site_config(recipe, {"site-1": {"threads": 2}})
    with pytest.raises(UserError, match=sentence):
        recipe.export(str(tmp_path / "job"), env=SimEnv(**sites, workspace_root=str(tmp_path / "ws")))
    assert not [*tmp_path.iterdir()]


def test_a_recipe_is_simulated_again_with_other_sites(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(FedJobConfig, "simulator_run", lambda self, *_, clients, **__: started.append(clients))
    recipe = PeftRecipe(method="norm")
    sites: list[dict[str, Any]] = [{"num_clients": 2}, {"num_clients": 2}, {"clients": ["a", "b"]}, {"num_clients": 3}]
    for one in sites:
        recipe.execute(SimEnv(**one, workspace_root=str(tmp_path)))
    assert started == ["site-1,site-2", "site-1,site-2", "a,b", "site-1,site-2,site-3"]


def test_a_filter_comes_before_ours(tmp_path):
    recipe = PeftRecipe(method="norm")
    recipe.add_client_output_filter(PercentilePrivacy(), tasks=["train"])
    client = config(exported(recipe, tmp_path), "client")
    assert [one["filters"][0]["path"].rpartition(".")[2] for one in client["task_result_filters"]] == [
        "PercentilePrivacy",
        "EgressFilter",
    ]
    assert [*filter_refusals(recipe.experiment, tmp_path / "norm" / "app" / "config")] == []


def test_what_is_added_may_bring_code(tmp_path):
    script = tmp_path / "notes.txt"
    script.write_text("of the lead's")
    recipe = PeftRecipe(method="norm")
    recipe.add_server_file(str(script))
    job = exported(recipe, tmp_path)
    assert job.keys() - files(JOBS / "norm").keys() == {"app/custom/notes.txt"}
    assert "app/custom/notes.txt" in exported(recipe, tmp_path, ProdEnv(startup_kit_location=str(tmp_path)))


def test_tracking_takes_the_place_of_ours_of_the_same_kind(tmp_path):
    recipe = PeftRecipe(method="norm")
    add_experiment_tracking(recipe, "tensorboard", {"tb_folder": "curves"})
    receivers = [one for one in config(exported(recipe, tmp_path), "server")["components"] if "Receiver" in one["path"]]
    assert [one["path"] for one in receivers] == ["pt_peft_flare.tensorboard_receiver.TensorBoardReceiver"]
    assert receivers[0]["args"]["tb_folder"] == "curves"
    with pytest.raises(UserError, match="client_side=True gives no curves"):
        add_experiment_tracking(PeftRecipe(method="norm"), "tensorboard", client_side=True, server_side=False)


def test_cross_site_evaluation_has_our_locator_and_ids_of_its_own(tmp_path):
    recipe = PeftRecipe(method="norm")
    add_cross_site_evaluation(recipe)
    server = config(exported(recipe, tmp_path), "server")
    assert [one["path"].rpartition(".")[2] for one in server["workflows"]] == ["PeftFedAvg", "CrossSiteModelEval"]
    locator = next(one for one in server["components"] if one["path"].endswith("Locator"))
    assert locator["path"] == "pt_peft_flare.model_locator.AdapterLocator"
    assert locator["args"] == {"pt_persistor_id": "persistor"}
    assert server["workflows"][1]["args"]["model_locator_id"] == locator["id"]
    ids = [one["id"] for one in (*server["workflows"], *server["components"])]
    assert len(set(ids)) == len(ids)


def test_flares_mlflow_receiver_is_ours():
    added = {
        "components": [{"id": "receiver", "path": "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"}]
    }
    together = _together(SERVER_CONFIG, added)
    assert together["components"][-1] == {"id": "receiver", "path": "pt_peft_flare.mlflow_receiver.MlflowReceiver"}


def test_a_folder_that_is_no_job_is_left_alone(tmp_path):
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="norm: exists and is not a job folder"):
        PeftRecipe(method="norm").export(str(tmp_path))
    assert (tmp_path / "norm" / "thesis.tex").exists()


def test_a_simulation_has_settings_of_single_sites_and_a_cross_site_evaluation(
    tiny, tiny_weights, shared_host, tmp_path, monkeypatch
):
    """The simulator's processes are FLARE's; the sites' settings arrive, and every model is evaluated everywhere.

    A site's own model is not encoded, and larger than what sites send in rounds.
    """
    monkeypatch.setenv(HOST_VARIABLE, shared_host.socket)
    experiment = changed(tiny, payload={"up": {"name": "int8"}})
    recipe = PeftRecipe.from_experiment(experiment, site={"backbone": str(tiny_weights), "limits": None})
    own = {"site-1": {"cache": str(tmp_path / "own")}, "site-2": {"limits": {"own_model_stays": True}}}
    set_per_site_config(recipe, own)
    add_cross_site_evaluation(recipe)
    run = recipe.execute(SimEnv(num_clients=2, workspace_root=str(tmp_path)))
    result = Path(run.get_result() or "")
    assert result == tmp_path / "tiny"
    assert find_adapter(result) == result / "server" / "simulate_job" / "adapter.safetensors"
    metrics = json.loads((result / "server" / "simulate_job" / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert (tmp_path / "own" / "exchanged").is_dir()
    (matrix,) = result.rglob("cross_val_results.json")
    models = json.loads(matrix.read_text())
    assert models.keys() == {"site-1", "site-2"}
    assert models["site-1"].keys() == {"SRV_adapter.safetensors", "SRV_best_adapter.safetensors", "site-1"}, (
        "site-2 keeps its own model"
    )

    found = metrics["cross_site"]
    assert [*found["models"]] == ["SRV_adapter.safetensors", "SRV_best_adapter.safetensors", "site-1"]
    for name, one in found["models"].items():
        assert not one["left_out"]
        for site, report in one["sites"].items():
            assert report["test"]["confusion"] == models[site][name]["test"]["confusion"]
    final, again = metrics["final"], found["models"]["SRV_adapter.safetensors"]
    assert (again["test"], again["val"]) == (final["test"], final["val"])
    assert found["left_out"].keys() == {"site-2"}
    assert (found["left_out"]["site-2"]["code"], found["left_out"]["site-2"]["field"]) == (
        "outside_limits",
        "own_model_stays",
    )
    lines = [line for line in Run(result, 0, "").ledger("site-1") if line["task"] == "submit_model"]
    assert [line["sha256"] for line in lines] == [found["models"]["site-1"]["sha256"]]
    kept = [line for line in Run(result, 0, "").ledger("site-2") if line["task"] == "submit_model"]
    assert [(line["reason"]["field"], "tensors" in line) for line in kept] == [("own_model_stays", False)]
    for site in ("site-1", "site-2"):
        ledger = look(result / site / "simulate_job" / "egress.jsonl", None)
        verify(ledger, result / "server" / "simulate_job" / "metrics.json")
        assert not ledger["faults"]
        assert all(one["counted"] for one in ledger["sent"] if one["sha256"])
    curves = EventMultiplexer().AddRunsFromDirectory(str(result / "server" / "simulate_job" / "tb_events")).Reload()
    (point,) = curves.Scalars("site-2", "test_cross_site/site-1")
    assert point.value == pytest.approx(models["site-2"]["site-1"]["test"]["balanced_accuracy"])
    assert {"cross_site/val", "cross_site/test"} <= set(curves.Runs()["global"]["images"])
