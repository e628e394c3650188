"""What may leave a site beside tensors."""

import math

import msgpack
import numpy as np
import pytest

from helpers import changed
from pt_peft.environment import own_code
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Data, Training
from pt_peft.federation.reports import (
    EvaluationReport,
    TrainingReport,
    most_images,
    report_bytes,
    rounded_epsilon,
    rounded_loss,
)
from pt_peft.presets import demo
from pt_peft.schema import parse
from pt_peft.training.metrics import confusion_metrics

CODE = own_code().model_dump()
CONFUSION = [[3, 1], [0, 2]]
SPLIT = {
    "count": 6,
    "loss": 0.5,
    "auroc": 0.875,
    "class_auroc": [0.875, 0.875],
    "ece": 0.1,
    "confusion": CONFUSION,
    **confusion_metrics(np.array(CONFUSION)),
}
EXPERIMENT = demo("lora_vpt")[0].model_copy(update={"data": Data(source="site", classes=("a", "b"))})
WITH_OWN_MODELS = EXPERIMENT.model_copy(update={"training": Training(ditto=0.1)})
TRAINING = {"num_samples": 10, "train_loss": 0.4, "seconds": 1.0, "val": SPLIT, "code": CODE}


def check(report: dict) -> TrainingReport:
    return parse(TrainingReport, report, "report").checked(EXPERIMENT)


def test_a_good_report_passes():
    check(TRAINING)
    check({**TRAINING, "val": None})
    parse(EvaluationReport, {"val": SPLIT, "test": None, "seconds": 1.0, "code": CODE}, "report").checked(EXPERIMENT)


def test_the_precision_is_one_that_the_experiment_lets_a_site_compute_in():
    auto = EXPERIMENT.model_copy(update={"training": Training(precision="auto")})

    def told(experiment, precision):
        return parse(TrainingReport, {**TRAINING, **precision}, "report").checked(experiment).precision

    assert [told(auto, {"precision": one}) for one in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert told(EXPERIMENT, {}) == told(EXPERIMENT, {"precision": "float32"}) == "float32"
    for experiment, precision, right in ((EXPERIMENT, "bfloat16", "float32"), (auto, None, "float32 or bfloat16")):
        with pytest.raises(UserError, match=rf"report: precision is {precision}, .*; {right} would be right"):
            told(experiment, {"precision": precision})
    with pytest.raises(UserError, match="precision"):
        told(auto, {"precision": "float16"})


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
    parse(TrainingReport, {**TRAINING, "num_samples": most}, "report").checked(experiment)
    with pytest.raises(UserError, match=f"'num_samples' is {most + 1}; at most {most} would be right"):
        parse(TrainingReport, {**TRAINING, "num_samples": most + 1}, "report").checked(experiment)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("classes", [2, 40, 1000])
def test_the_largest_report_has_fewer_bytes_than_the_server_takes(classes, task):
    experiment = changed(EXPERIMENT, data={"classes": tuple(map(str, range(classes))), "task": task})
    width = 4 if task == "multilabel" else classes
    split = {**SPLIT, "class_auroc": [1 / 3] * classes, "confusion": [[10**7] * width] * classes}
    splits = dict.fromkeys(("val", "test", "own_val", "own_test"), split)
    assert len(msgpack.packb({**splits, "seconds": 1.0, "code": CODE}) or b"") < report_bytes(experiment) - (32 << 10)


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
        ({"val": {**SPLIT, "auroc": 0.5}}, "auroc is 0.5, but what is reported beside it gives 0.875"),
        ({"val": {**SPLIT, "class_auroc": [0.9]}}, "class_auroc has 1 values; 2 would be right"),
        (
            {"val": {**SPLIT, "quadratic_kappa": 0.9}},
            "quadratic_kappa is 0.9, but what is reported beside it gives None",
        ),
        (
            {"val": {**SPLIT, "class_auroc": [None, 0.875]}},
            "class_auroc.0 is None, but with 8 pairs of images a number",
        ),
        ({"val": {**SPLIT, "auroc": np.float32(0.5)}}, "not plain JSON"),
        ({"code": {**CODE, "version": "St Mary"}}, "'code.version'"),
        ({"code": {**CODE, "source": "0123456789abcdeg"}}, "'code.source'"),
    ],
)
def test_a_bad_report_does_not(change, message):
    with pytest.raises(UserError, match=message):
        check({**TRAINING, **change})


def test_metrics_of_a_model_that_no_site_has():
    report = parse(TrainingReport, {**TRAINING, "own_val": SPLIT}, "report")
    report.checked(WITH_OWN_MODELS)
    with pytest.raises(UserError, match=r"own_val is there, but training\.ditto is 0"):
        report.checked(EXPERIMENT)


@pytest.mark.parametrize(
    ("field", "given", "leaves"),
    [
        ("train_loss", 0.123456789, 0.1235),
        ("train_loss", 1.23456789, 1.235),
        ("train_loss", 123456.789, 123500.0),
        ("train_loss", 3.2e-7, 0.0),
        ("seconds", 12.3456, 12.3),
        ("val.loss", 0.987654321, 0.9877),
        ("val.ece", 0.123456789, 0.1235),
    ],
)
def test_floats_leave_rounded_to_what_they_mean(field, given, leaves):
    report = {**TRAINING, "val": {**SPLIT}}
    place, name = (report["val"], field.removeprefix("val.")) if field.startswith("val.") else (report, field)
    place[name] = given
    checked = check(report)
    assert getattr(checked.val if place is report["val"] else checked, name) == leaves
    assert check(checked.model_dump(mode="json")) == checked, "the server finds it as it came"


def test_an_area_leaves_as_what_so_many_pairs_can_give():
    """Each class has 4 or 2 positives among 6 images: 8 pairs, and areas are multiples of 1/16."""
    split = check({**TRAINING, "val": {**SPLIT, "class_auroc": [0.8712345, 0.9399], "auroc": 0.9062}}).val
    assert split is not None
    assert split.class_auroc == [0.875, 0.9375]
    assert split.auroc == 0.90625


def test_what_follows_from_the_counts_carries_nothing_of_its_own():
    """Within the tolerance a site could say anything; it leaves as the counts have it."""
    metrics = confusion_metrics(np.array(CONFUSION))
    told = {name: metrics[name] + 3e-5 for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    assert check({**TRAINING, "val": {**SPLIT, **told}}) == check(TRAINING)


@pytest.mark.parametrize(("given", "leaves"), [(1.23401, 1.235), (1.234, 1.234), (0.1 + 0.2, 0.3001), (12345.6, 12350)])
def test_epsilon_is_rounded_upwards(given, leaves):
    assert rounded_epsilon(given) == leaves == rounded_epsilon(leaves)


def test_the_capacity_of_a_report():
    """Bits that the floats of a report can carry at most in a round, as the page on security says."""
    losses = 1 + sum(9000 for _ in range(6)) + 9999  # 1e-4 … 0.9999, then four digits in each of six decades
    assert len({rounded_loss(number * 1e-4) for number in range(1, 10_000)} | {0.0}) == 10_000
    assert len({rounded_loss(number / 1000) for number in range(1000, 10_000)}) == 9000
    loss, share, seconds = math.log2(losses), math.log2(10_001), math.log2(10 * 1800)
    split = loss + share + 4 * share  # loss, ECE and an area for each of four classes
    assert loss == pytest.approx(15.97, abs=0.01)
    assert split == pytest.approx(82.4, abs=0.05)
    assert loss + seconds + split == pytest.approx(112.5, abs=0.1)  # and `precision` one more if it is ``auto``
