"""A damaged file or payload is read as what it says or refused with a sentence: no crash, no hang."""

import json
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mutations import VALUES, changed_bytes, changed_json

from pt_peft.environment import own_code
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError, TensorSpec, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.federation.reports import TrainingReport
from pt_peft.model.adapter_file import load_adapter, save_adapter
from pt_peft.presets import demo
from pt_peft.schema import parse
from pt_peft_flare.wire import BEFORE, packed, unpacked

Read = TypeVar("Read")
CASES = int(os.environ.get("PT_PEFT_FUZZ_CASES", "60"))
"""Cases of each test; `make fuzz` runs 10,000."""
fuzz = settings(
    max_examples=CASES,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DEMO = demo("lora_vpt")[0]
EXPERIMENT = json.loads(DEMO.to_json())
SITE = {
    "data": {
        "source": "csv",
        "images": "images.zip",
        "table": "table.csv",
        "columns": {"label": "dx", "group": "patient"},
        "classes": {"melanoma": ["mel", "MM"], "naevus": []},
        "no_finding": "none",
        "leave_out": ["unsure"],
        "pooled": True,
    },
    "backbone": "weights.safetensors",
    "device": "cpu",
    "threads": 2,
    "cache": "cache",
    "cache_gb": 3.5,
    "max_unreadable": 0.1,
    "limits": {"methods": ["lora"], "bytes_per_round": 1000, "backbones": ["0" * 64], "max_epsilon": 8.0},
}


def attempt(read: Callable[[], Read]) -> Read | UserError:
    """What `read` returns, or the UserError that it raises."""
    try:
        return read()
    except UserError as error:
        return error


def says(given_fields: object, read: object) -> bool:
    """Whether everything that was given was read unchanged."""
    if isinstance(given_fields, dict) and isinstance(read, dict):
        return all(key in read and says(value, read[key]) for key, value in given_fields.items())
    if isinstance(given_fields, list) and isinstance(read, list):
        return len(given_fields) == len(read) and all(map(says, given_fields, read))
    if type(given_fields) is int and isinstance(read, float):  # JSON has one kind of number
        given_fields = float(given_fields)
    return given_fields == read and isinstance(given_fields, bool) == isinstance(read, bool)


def test_what_is_not_changed_is_read(tmp_path):
    for model, content in ((Experiment, EXPERIMENT), (Site, SITE), (TrainingReport, REPORT)):
        assert says(content, parse(model, content, "original").model_dump(mode="json"))
    assert parse(TrainingReport, REPORT, "report").checked(DEMO) == parse(TrainingReport, REPORT, "report")


@fuzz
@given(changed_json(EXPERIMENT))
def test_experiment_fields(tmp_path, content):
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(content))
    experiment = attempt(lambda: Experiment.read(path))
    if isinstance(experiment, UserError):
        assert "\n" not in str(experiment)
        assert str(path) in str(experiment)
    else:
        assert says(content, json.loads(experiment.to_json()))


@fuzz
@given(changed_bytes(json.dumps(EXPERIMENT).encode()))
def test_experiment_bytes(tmp_path, content):
    path = tmp_path / "experiment.json"
    path.write_bytes(content)
    experiment = attempt(lambda: Experiment.read(path))
    if not isinstance(experiment, UserError):
        assert says(json.loads(content.decode("utf-8-sig")), json.loads(experiment.to_json()))


@fuzz
@given(changed_json(SITE))
@example({**SITE, "limits": {"methods": ["lora"], "backbones": None}})
def test_site_fields(tmp_path, content):
    path = tmp_path / "site.json"
    path.write_text(json.dumps(content))
    site = attempt(lambda: Site.read(path))
    if isinstance(site, UserError):
        assert str(path) in str(site)
        return
    paths = {"data", "backbone", "cache"}  # made absolute
    given_fields = {key: value for key, value in content.items() if key not in paths}
    read = site.model_dump(mode="json")
    if read["limits"] is not None:  # written without its defaults
        read["limits"] = site.limits.model_dump(mode="json")
    assert says(given_fields, read)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_adapter(
        path, {"blocks.0.a": np.ones((3, 4), np.float32), "head.weight": np.zeros(7, np.float32)}, {"round": 3}
    )
    return path.read_bytes()


@fuzz
@given(st.data())
def test_adapter_bytes(tmp_path, adapter, data):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data.draw(changed_bytes(adapter)))
    loaded = attempt(lambda: load_adapter(path))
    if isinstance(loaded, UserError):
        assert str(path) in str(loaded)
    else:
        tensors, _ = loaded
        assert all(type(value) is np.ndarray and value.dtype != object for value in tensors.values())
        assert sum(value.nbytes for value in tensors.values()) <= path.stat().st_size


SPECS = {"a": TensorSpec((2, 3), "float32"), "b": TensorSpec((4,), "float32")}
ARRAYS = hnp.arrays(
    dtype=hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3) | st.just(np.dtype(object)) | st.just(np.dtype("float32")),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=4) | st.sampled_from([(2, 3), (4,), (0,)]),
    elements=None,
)
GOOD = hnp.arrays(np.float32, st.sampled_from([(2, 3), (4,)]), elements=st.floats(width=32))
PAYLOADS = VALUES | st.dictionaries(
    st.sampled_from(["a", "b", "c", "image", 3, None]), GOOD | ARRAYS | VALUES, max_size=4
)


@fuzz
@given(PAYLOADS)
def test_payloads(payload):
    try:
        tensors = check_tensors(payload, SPECS)
    except TensorError:
        return
    assert tensors.keys() == SPECS.keys()
    for key, value in tensors.items():
        assert type(value) is np.ndarray
        assert value.shape == SPECS[key].shape
        assert value.dtype == np.float32
        assert np.isfinite(value).all()


REPORT = {
    "num_samples": 10,
    "train_loss": 0.5,
    "seconds": 3.0,
    "code": own_code().model_dump(),
    "precision": "float32",
    "val": {
        "count": 4,
        "loss": 0.7,
        "accuracy": 1.0,
        "balanced_accuracy": 1.0,
        "macro_f1": 1.0,
        "auroc": 0.5,
        "class_auroc": [0.5, 0.5, 0.5, 0.5],
        "ece": 0.1,
        "confusion": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    },
}


@fuzz
@given(changed_json(REPORT))
def test_reports(content):
    try:
        report = parse(TrainingReport, content, "report")
        report.checked(DEMO)
    except UserError:
        return
    assert says(content, report.model_dump(mode="json"))
    assert report.val is None or sum(map(sum, report.val.confusion)) == report.val.count


WIRE = packed({f"blocks.{index}.lora_A": np.ones((2, 3), np.float32) for index in range(4)})


@fuzz
@given(st.one_of(changed_bytes(WIRE), st.binary(max_size=200)))
def test_tensors_on_the_wire(content):
    try:
        tensors = unpacked(content, BEFORE)
    except TensorError:
        return
    assert all(type(value) is np.ndarray for value in tensors.values())
