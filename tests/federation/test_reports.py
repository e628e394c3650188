"""What may leave a site beside tensors."""

import time

import msgpack
import numpy as np
import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Data, Training
from pt_peft.federation.reports import EvaluationReport, TrainingReport, most_images, report_bytes
from pt_peft.presets import demo
from pt_peft.schema import parse
from pt_peft.training.metrics import confusion_metrics
from pt_peft_flare.filters import redact
from pt_peft_flare.messages import MAX_REASON, REASON, failure, reason_of

CONFUSION = [[3, 1], [0, 2]]
SPLIT = {
    "count": 6,
    "loss": 0.5,
    "auroc": 0.9,
    "class_auroc": [0.85, 0.95],
    "ece": 0.1,
    "confusion": CONFUSION,
    **confusion_metrics(np.array(CONFUSION)),
}
EXPERIMENT = demo("lora_vpt")[0].model_copy(update={"data": Data(source="csv", classes=("a", "b"))})
WITH_OWN_MODELS = EXPERIMENT.model_copy(update={"training": Training(ditto=0.1)})
TRAINING = {"num_samples": 10, "train_loss": 0.4, "seconds": 1.0, "val": SPLIT}


def check(report: dict) -> None:
    parse(TrainingReport, report, "report").check(EXPERIMENT)


def test_a_good_report_passes():
    check(TRAINING)
    check({**TRAINING, "val": None})
    parse(EvaluationReport, {"val": SPLIT, "test": None, "seconds": 1.0}, "report").check(EXPERIMENT)


@pytest.mark.parametrize(
    ("federation", "data", "most"),
    [
        ({}, {}, 100_000),
        ({"max_images": 50}, {}, 50),
        ({"max_images": 50}, {"max_images_per_site": {"train": 20}}, 20),
        ({"max_images": 50}, {"max_images_per_site": {"train": 80}}, 50),
        ({"max_images": 50}, {"max_images_per_site": {"val": 8}}, 50),
        ({}, {"source": "lesions", "images_per_site": {"train": 30}}, 30),
    ],
)
def test_a_site_may_say_that_it_has_so_many_images_and_no_more(federation, data, most):
    """They are its weight in a mean."""
    experiment = changed(EXPERIMENT, federation=federation, data=data)
    assert most_images(experiment) == most
    parse(TrainingReport, {**TRAINING, "num_samples": most}, "report").check(experiment)
    with pytest.raises(UserError, match=f"'num_samples' is {most + 1}; at most {most} would be right"):
        parse(TrainingReport, {**TRAINING, "num_samples": most + 1}, "report").check(experiment)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("classes", [2, 40, 1000])
def test_the_largest_report_has_fewer_bytes_than_the_server_takes(classes, task):
    experiment = changed(EXPERIMENT, data={"classes": tuple(map(str, range(classes))), "task": task})
    width = 4 if task == "multilabel" else classes
    split = {**SPLIT, "class_auroc": [1 / 3] * classes, "confusion": [[10**7] * width] * classes}
    splits = dict.fromkeys(("val", "test", "own_val", "own_test"), split)
    assert len(msgpack.packb({**splits, "seconds": 1.0}) or b"") < report_bytes(experiment) - (32 << 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "'num_samples' is 0"),
        ({"num_samples": -5}, "'num_samples' is -5"),
        ({"num_samples": True}, "'num_samples' is true"),
        ({"train_loss": float("nan")}, "'train_loss'"),
        ({"train_loss": 1e308}, "'train_loss'"),
        ({"pixels": [0.5] * 10}, "'pixels' is unknown"),
        ({"val": {**SPLIT, "image": [1, 2]}}, "'val.image' is unknown"),
        ({"val": {**SPLIT, "count": 0, "confusion": [[0, 0], [0, 0]]}}, "'val.count' is 0"),
        ({"val": {**SPLIT, "count": 7}}, "counts that sum to 7 would be right"),
        ({"val": {**SPLIT, "confusion": [[6]]}}, "2 rows of 2 counts"),
        (
            {"val": {**SPLIT, "balanced_accuracy": 1.0}},
            "balanced_accuracy is 1.0, but what is reported beside it gives 0.875",
        ),
        ({"val": {**SPLIT, "auroc": 0.5}}, "auroc is 0.5, but what is reported beside it gives 0.8999"),
        ({"val": {**SPLIT, "class_auroc": [0.9]}}, "class_auroc has 1 values; 2 would be right"),
        (
            {"val": {**SPLIT, "quadratic_kappa": 0.9}},
            "quadratic_kappa is 0.9, but what is reported beside it gives None",
        ),
        ({"val": {**SPLIT, "auroc": np.float32(0.5)}}, "not plain JSON"),
    ],
)
def test_a_bad_report_does_not(change, message):
    with pytest.raises(UserError, match=message):
        check({**TRAINING, **change})


@pytest.mark.parametrize(
    ("reason", "left"),
    [
        (
            "site.json: field 'backbone' is '/data/st_mary/w.pt', which does not exist",
            "site.json: field 'backbone' is …, which does not exist",
        ),
        ("/data/t.csv: line 3: column 'dx' is 'O'Brien, Anna'; it", "… line 3: column … is …; it"),
        ("the host ended, see /srv/run/worker_host.log", "the host ended, see …"),
        ("tensor 'head.bias' has shape (99,), not (4,)", "tensor 'head.bias' has shape (99,), not (4,)"),
        ("1 tensor(s) not allowed: 'SMITH^JOHN'", "1 tensor(s) not allowed: …"),
        ("the site's data isn't 'secret' here", "the site's data isn't … here"),
        ("file 'patient\nJohn Doe' is bad", "file … is bad"),
        ("b'Jane' and f'Jane Doe'", "… and …"),
        ("/data/John Smith Doe/x.png: cannot be read", "… cannot be read"),
        ("'Dr. O' Brien.png' is bad", "…"),
        ("file `Jane Doe.png` is bad", "file … is bad"),
        ("tensor 'a' of 'b' Jane' Doe", "tensor 'a' of …"),
    ],
)
def test_a_reason_leaves_without_values_and_paths(reason, left):
    assert redact(reason) == left


def test_a_reason_is_short():
    assert len(redact("x " * 10**6)) <= MAX_REASON
    started = time.monotonic()
    redact("a" * 10**6)
    assert time.monotonic() - started < 5, "a lead could hold a site's process with a long name"


def test_what_a_site_says_is_one_printable_line_for_the_server():
    reply = failure("it\nfailed \x1b[31m" + "x" * 10**6)
    assert reason_of(reply).startswith("it failed  [31mxxx")
    assert len(reason_of(reply)) == MAX_REASON
    reply.set_header(REASON, np.array([[1], [2]]))
    assert reason_of(reply) == "[[1]  [2]]"
    assert reason_of(make_reply(ReturnCode.EXECUTION_EXCEPTION)) == ReturnCode.EXECUTION_EXCEPTION


def test_metrics_of_a_model_that_no_site_has():
    report = parse(TrainingReport, {**TRAINING, "own_val": SPLIT}, "report")
    report.check(WITH_OWN_MODELS)
    with pytest.raises(UserError, match=r"own_val is there, but training\.ditto is 0"):
        report.check(EXPERIMENT)
