"""Which code made a result."""

import shutil
from pathlib import Path

import grimp
import pytest

from helpers import ROOT
from pt_peft import __version__, environment
from pt_peft.environment import METHOD_CODE, Code, own_code, source_digest, usable_cores
from pt_peft.schema import parse

PACKAGE = ROOT / "pt_peft"


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the source elsewhere, under another name, as a wheel or a job's bundle has it."""
    return shutil.copytree(
        PACKAGE, tmp_path / "site-packages" / "a", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )


def test_a_copy_elsewhere_has_the_same_digest(copy):
    assert source_digest(copy) == source_digest(PACKAGE)
    assert source_digest(copy, ("model", "seeds.py")) == source_digest(PACKAGE, ("seeds.py", "model"))


def test_what_is_no_source_has_no_part_in_it(copy):
    before = source_digest(copy)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "seeds.cpython-311.pyc").write_bytes(b"compiled")
    (copy / "py.typed").write_text("more")
    for file in copy.rglob("*.py"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))  # as git may check it out
    assert source_digest(copy) == before


def test_content_and_names_have(copy):
    digests = {source_digest(copy)}
    (copy / "seeds.py").write_text((copy / "seeds.py").read_text() + "# another line\n")
    digests.add(source_digest(copy))
    (copy / "seeds.py").rename(copy / "seed.py")
    digests.add(source_digest(copy))
    (copy / "methods" / "another.py").write_text("")
    digests.add(source_digest(copy))
    assert len(digests) == 4


def test_own_code(monkeypatch):
    code = own_code()
    assert code.version == __version__
    assert parse(Code, code.model_dump(), "report") == code
    monkeypatch.setattr(environment, "version", lambda name: "0.0")
    environment.method_digest.cache_clear()
    own_code.cache_clear()
    other = own_code()
    assert other.source == code.source
    assert other.method != code.method, "another timm builds another model"
    monkeypatch.undo()
    environment.method_digest.cache_clear()
    own_code.cache_clear()
    assert own_code() == code


def test_flares_parts_belong_to_it(monkeypatch):
    before = own_code()
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    own_code.cache_clear()
    assert own_code().source != before.source
    monkeypatch.undo()
    own_code.cache_clear()


def test_the_methods_code_is_all_that_planning_an_exchange_imports():
    """But for what only words errors and writes files."""
    graph = grimp.build_graph("pt_peft")
    starts = {"pt_peft.model.planned_exchange", *graph.find_children("pt_peft.methods")}
    reached = starts.union(*(graph.find_upstream_modules(start) for start in starts))
    places = {module.split(".")[1] for module in reached}
    assert places - {"errors", "files", "reasons"} == {name.removesuffix(".py") for name in METHOD_CODE}


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("400000 100000\n", 4),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("max 100000\n", 8),
    ],
)
def test_a_container_has_the_cores_that_it_may_use(said, cores, tmp_path, monkeypatch):
    """Docker and Kubernetes leave all cores visible, and stop the container once their time is used up."""
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(environment, "QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text(said)
    assert usable_cores() == cores
