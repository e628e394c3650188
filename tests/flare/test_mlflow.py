"""A job's scalars in MLflow, where it is installed."""

import json

import pytest

from helpers import changed, simulate
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.job_folder import write_job, write_workspace

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of mlflow and what it stands on
def test_every_site_and_the_federation_have_a_run(tiny, tiny_weights, shared_host, tmp_path):
    write_workspace(Site(limits=Limits.open(), backbone=str(tiny_weights)), tmp_path / "workspace")
    # MLflow takes no brackets in a name, and refuses all that is sent with one.
    write_job(changed(tiny, data={"classes": ["a (b)", "b", "c", "d"]}), tmp_path / "job")
    config_file = tmp_path / "job" / "app" / "config" / "config_fed_server.json"
    config = json.loads(config_file.read_text())
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    receiver = {"id": "mlflow", "path": "pt_peft_flare.mlflow_receiver.MlflowReceiver", "args": {"tracking_uri": uri}}
    config_file.write_text(json.dumps({**config, "components": [*config["components"], receiver]}))
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output

    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 3
    final = run.metrics["final"]["sites"]["site-1"]["val"]["balanced_accuracy"]
    site = next(one for one in runs if one.info.run_name.startswith("site-1"))
    whole = next(one for one in runs if one.info.run_name.startswith("global"))
    history = client.get_metric_history(site.info.run_id, "val/balanced_accuracy")
    assert [point.step for point in history] == [0, 1, 2]
    assert history[-1].value == pytest.approx(final)
    pooled = run.metrics["final"]["test"]["pooled"]["balanced_accuracy"]
    history = client.get_metric_history(whole.info.run_id, "test_pooled/balanced_accuracy")
    assert history[-1].value == pytest.approx(pooled)
    assert client.get_metric_history(site.info.run_id, "val_auroc/a _b_")
    assert all(one.info.status == "FINISHED" for one in runs)
