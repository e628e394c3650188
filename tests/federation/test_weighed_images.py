"""Counts that come down weigh the classes of a site: they must not make of many images one."""

import numpy as np
import pytest

from helpers import changed
from pt_peft.errors import OutsideLimits
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.statistics import FEDERATION_COUNTS
from pt_peft.worker.request_handler import RequestHandler


def handler_of(experiment, site, folder, least):
    limits = Limits.open().model_copy(update={"min_train_images": least})
    own = site.model_copy(update={"limits": limits, "cache": str(folder / "cache")})
    handler = RequestHandler()
    handler.open(
        {
            "experiment": experiment.model_dump(mode="json"), "site": own.model_dump(mode="json"), "name": "a",
            "names": ["a", "b"], "run_dir": str(folder), "continues": None, "threads": 1,
        },
        {},
    )  # fmt: skip
    return handler


def test_no_class_outweighs_all_other_images(tiny, site, tmp_path):
    """A site of 40 images in four classes of ten: the change of a round would be that of one class's images."""
    handler = handler_of(changed(tiny, training={"imbalance": "federation_weights"}), site, tmp_path, 20)
    model = handler.initial_state({}, {})[1]

    def trained(counts):
        down = {**model, FEDERATION_COUNTS: np.array(counts, np.float64)}
        return handler.train({"round": 0, "since": 0, "taken": None}, down)[0]["num_samples"]

    with pytest.raises(OutsideLimits, match=r"weights make 10 image\(s\) of all; allowed: at least 20"):
        trained([10, 1e12, 1e12, 1e12])
    assert trained([20, 30, 40, 50]) == 40
