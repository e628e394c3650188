"""What a header says of how frequent the classes were, and why."""

import numpy as np
import pytest

from helpers import changed
from pt_peft.experiment.prevalence import class_counts, learnt_prevalence

LABELS = {"data": {"source": "site", "task": "multilabel", "augment": []}}
GRADES = {"data": {"task": "ordinal"}}


@pytest.mark.parametrize(
    ("learnt", "changes"),
    [
        ("training", {}),
        ("training", GRADES),
        ("training", LABELS),
        ("uniform", {"training": {"imbalance": "balanced_softmax"}}),
        ("uniform", {"training": {"imbalance": "balanced_softmax"}, **LABELS}),
        ("uniform", {"training": {"imbalance": "weighted_loss"}}),
        ("uniform", {"training": {"imbalance": "federation_weights"}, "aggregation": {"weighting": "samples"}}),
        ("uniform", {"training": {"imbalance": "weighted_sampler"}}),
        ("neither", {"training": {"imbalance": "weighted_sampler"}, **LABELS}),
        ("neither", {"training": {"imbalance": "fedlc"}}),
        ("neither", {"aggregation": {"weighting": "class_samples"}}),
        ("uniform", {"aggregation": {"weighting": "class_samples"}, "training": {"imbalance": "balanced_softmax"}}),
        ("uniform", {"head": {"finish": "lda"}}),
        ("uniform", {"head": {"start": "ridge"}, "federation": {"rounds": 0}}),
        ("training", {"head": {"start": "ridge"}}),
    ],
)
def test_by_what_is_minimised(learnt, changes, tiny):
    assert learnt_prevalence(changed(tiny, **changes)) == learnt


def test_counts_of_training_images_where_sites_have_sent_them():
    found = class_counts("multiclass", np.array([3.2, -0.7, 5.0]), [[9, 0, 0], [0, 9, 0], [0, 0, 9]])
    assert found
    assert found.model_dump() == {"split": "train", "images": 8, "counts": (3, 0, 5)}


def test_counts_of_validation_images_elsewhere():
    found = class_counts("ordinal", None, [[5, 1], [2, 4]])
    assert found
    assert found.model_dump() == {"split": "val", "images": 12, "counts": (6, 6)}
    labels = class_counts("multilabel", None, [[5, 1, 2, 4], [9, 0, 3, 0]])
    assert labels
    assert labels.model_dump() == {"split": "val", "images": 12, "counts": (6, 3)}


def test_nobody_knows():
    assert class_counts("multiclass", None, None) is None
    assert class_counts("multiclass", np.zeros(3), None) is None
