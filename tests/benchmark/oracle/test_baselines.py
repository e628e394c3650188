"""The majority baseline."""

import numpy as np
import torch

from benchmark.oracle.baselines import majority
from pt_peft.data.items import NOT_KNOWN
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.experiment.sections import Data


def test_labels_that_are_not_known_do_not_count():
    train = np.array([[1, NOT_KNOWN], [0, 1], [1, NOT_KNOWN], [1, 0]], np.uint8)
    splits = [
        ImageSplit(np.zeros((len(labels), 3, 4, 4), np.uint8), labels) for labels in (train, train[:0], train[1:2])
    ]
    data = Data(source="site", task="multilabel", classes=("a", "b"))
    logits = torch.from_numpy(majority(data, {"one": SiteData(*splits)}).logits)
    assert torch.allclose(logits.sigmoid(), torch.tensor([[0.75, 0.5]], dtype=torch.float64))
