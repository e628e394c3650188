"""TensorBoard in a browser, with the curves of two jobs: what a page shows, and the picture of it."""

import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

from curve_data import NAMES, Curves, final_entry, round_entry
from helpers import changed
from pt_peft_flare.round_log import log_final, log_round

pytest.importorskip("selenium", reason="selenium is not installed")


def asked(address: str, tag: str) -> dict[str, float]:
    """By a job's learning rate the last value of `tag` in the table of hyperparameters."""
    statuses = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]
    columns = [{"hparam": "training.learning_rate"}, {"metric": {"group": "", "tag": tag}}]
    request = {"experimentName": "", "allowedStatuses": statuses, "colParams": columns, "startIndex": 0, "sliceSize": 9}
    headers = {"Content-Type": "application/json"}
    message = urllib.request.Request(
        f"{address}/data/plugin/hparams/session_groups", json.dumps(request).encode(), headers
    )
    groups = json.loads(urllib.request.urlopen(message).read())["sessionGroups"]
    return {
        group["hparams"]["training.learning_rate"]: next(
            one["value"] for one in group["metricValues"] if one["name"]["tag"] == tag
        )
        for group in groups
    }


def test_all_sites_of_two_jobs_on_one_chart_and_the_jobs_in_one_table(tiny, browser, tmp_path):
    import tensorboard_screenshot

    for rate in (0.001, 0.01):
        experiment = changed(tiny, training={"learning_rate": rate})
        curves = Curves(tmp_path / f"rate-{rate}", experiment)
        for number in range(2):
            log_round(curves.engine, experiment, round_entry(number))
        log_final(curves.engine, experiment, final_entry())
        curves.end("finished")
    with tensorboard_screenshot.served(tmp_path) as address:
        tensorboard_screenshot.photograph(browser, address, tmp_path / "page.png")
        runs = {f"rate-{rate}/tb_events/{name}" for rate in (0.001, 0.01) for name in ("global", *NAMES)}
        assert runs <= set(tensorboard_screenshot.texts(browser, "label, span"))
        # Two jobs of three sites, with the mean and the pooled curve of each on the first chart.
        matches = tensorboard_screenshot.texts(browser, ".matches-text")
        assert matches[:2] == ["Matches (10)", "Matches (8)"]
        assert asked(address, "test_pooled/balanced_accuracy") == {
            0.001: pytest.approx(0.61), 0.01: pytest.approx(0.61),
        }  # fmt: skip
    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (1200, 760)
        assert len(np.unique(np.asarray(image.convert("L")))) > 50, "the page is not blank"
