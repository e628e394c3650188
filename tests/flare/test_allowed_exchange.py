"""The egress filter's own knowledge of what is exchanged is kept no longer than it is true."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pt_peft
from helpers import changed
from pt_peft.code_key import code_key
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorSpec
from pt_peft.experiment.site import Site
from pt_peft_flare import allowed_exchange
from pt_peft_flare.allowed_exchange import cache_key, read_exchange

EXCHANGE = Exchange({"head.bias": TensorSpec((4,), "float32")}, frozenset({"head.bias"}))


@pytest.fixture(autouse=True)
def fresh_key():
    code_key.cache_clear()
    yield
    code_key.cache_clear()


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A copy of the package, which a test may change."""
    shutil.copytree(pt_peft.__path__[0], tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pt_peft, "__path__", [str(tmp_path / "code")])
    return tmp_path / "code"


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[str]:
    """The requests to workers."""
    requests = []

    class Worker:
        def __init__(self, *arguments):
            pass

        def call(self, request, patience):
            requests.append(request)
            return EXCHANGE.to_json(), {}

        def close(self):
            pass

    monkeypatch.setattr(allowed_exchange, "RespawningWorker", Worker)
    monkeypatch.setattr(allowed_exchange, "run_dir", lambda fl_ctx: tmp_path)
    return requests


def context() -> Any:
    return SimpleNamespace()


def test_it_is_computed_once(tiny, asked, tmp_path):
    site, fl_ctx = Site(cache=str(tmp_path / "cache")), context()
    assert read_exchange(tiny, site, fl_ctx) == EXCHANGE
    assert read_exchange(tiny, site, fl_ctx) == EXCHANGE
    assert asked == ["exchange"]
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("{")
    assert read_exchange(tiny, site, fl_ctx) == EXCHANGE
    assert len(asked) == 2, "a damaged file is not believed"


@pytest.mark.parametrize("name", ["exchange", "experiment", "methods", "model", "schema.py", "seeds.py"])
def test_it_is_computed_anew_after_a_change_of_the_code(name, tiny, asked, code, tmp_path):
    site, fl_ctx = Site(cache=str(tmp_path / "cache")), context()
    read_exchange(tiny, site, fl_ctx)
    file = code / name if name.endswith(".py") else next((code / name).rglob("[a-z]*.py"))
    file.write_text(file.read_text() + "\n# another line\n")
    code_key.cache_clear()  # as in a new process
    read_exchange(tiny, site, fl_ctx)
    assert len(asked) == 2


def test_another_experiment_other_weights_and_another_timm_have_other_keys(tiny, monkeypatch):
    experiments = (tiny, changed(tiny, seed=1), changed(tiny, backbone={"sha256": "0" * 64}))
    keys = {cache_key(experiment) for experiment in experiments}
    monkeypatch.setattr("pt_peft.code_key.version", lambda name: "another")
    code_key.cache_clear()
    assert len({*keys, cache_key(tiny)}) == 4
