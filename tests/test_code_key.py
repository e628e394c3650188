"""A change of any code that something kept was computed with, wherever that lies, changes its key."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

import pt_peft
from pt_peft import code_key as module
from pt_peft.code_key import code_key, file_of, library_version

LAB = {
    "lab/__init__.py": "",
    "lab/first.py": "import json\nfrom lab import second\n\ndef late():\n    from .deeper.third import THIRD\n",
    "lab/second.py": "import helper\nfrom PIL import Image\nimport not_there_yet\nfrom lab.no_init import fourth\n",
    "lab/deeper/__init__.py": "",
    "lab/deeper/third.py": "THIRD = 3\n",
    "lab/no_init/fourth.py": "from lab.no_init.deeper.fifth import FIFTH\n",
    "lab/no_init/deeper/fifth.py": "FIFTH = 5\n",
    "lab/other.py": "import torch\n",
    "helper.py": "VALUE = 1\n",
}
"""A package that no distribution has installed, and a module beside it."""


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    for name, content in LAB.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def fresh(*modules: str) -> str:
    """The key, as in a new process."""
    code_key.cache_clear()
    importlib.invalidate_caches()
    try:
        return code_key(*modules)
    finally:
        code_key.cache_clear()


@pytest.mark.parametrize("name", [name for name in LAB if name != "lab/other.py"])
def test_source_that_is_reached_changes_the_key(lab, name):
    before = fresh("lab.first")
    assert fresh("lab.first") == before
    (lab / name).write_text(LAB[name] + "# changed\n")
    assert fresh("lab.first") != before
    (lab / name).write_bytes(LAB[name].replace("\n", "\r\n").encode())
    assert fresh("lab.first") == before, "the ends of lines differ by system"
    assert "lab" not in sys.modules, "nothing is run"


def test_source_that_is_not_reached_does_not(lab):
    before, all_of_it = fresh("lab.first"), fresh("lab")
    (lab / "lab" / "other.py").write_text("import torch, numpy\n")
    assert fresh("lab.first") == before
    assert fresh("lab") != all_of_it


def test_a_module_that_is_installed_later_changes_the_key(lab):
    before = fresh("lab.first")
    (lab / "not_there_yet.py").write_text("")
    assert fresh("lab.first") != before


def test_versions_of_libraries_change_the_key(lab, monkeypatch):
    before, asked = fresh("lab.first"), []
    version = module.version
    monkeypatch.setattr(module, "version", lambda name: (asked.append(name), version(name))[1])
    assert fresh("lab.first") == before
    assert sorted(asked) == ["not_there_yet", "pillow"]
    monkeypatch.setattr(module, "version", lambda name: "0" if name == "pillow" else version(name))
    assert fresh("lab.first") != before


def test_a_folder_that_a_package_adds_for_itself_is_read_too(lab, monkeypatch):
    """As an author may do to have methods elsewhere."""
    import pt_peft.methods

    before = fresh("pt_peft.methods")
    (lab / "more").mkdir()
    (lab / "more" / "mine.py").write_text("from helper import VALUE\n")
    monkeypatch.setattr(pt_peft.methods, "__path__", [*pt_peft.methods.__path__, str(lab / "more")])
    added = fresh("pt_peft.methods")
    (lab / "helper.py").write_text("VALUE = 2\n")
    assert len({before, added, fresh("pt_peft.methods")}) == 3


def test_a_library_without_a_distribution_is_told_by_its_file(lab):
    assert library_version("nowhere", "nowhere") is None
    before = library_version("helper", "helper")
    (lab / "helper.py").write_text("VALUE = 22\n")
    assert None is not before != library_version("helper", "helper")
    assert library_version("PIL", "pillow") == importlib.import_module("PIL").__version__


def test_files_are_found_without_running_them(lab):
    assert file_of("lab.deeper.third") == lab / "lab" / "deeper" / "third.py"
    assert file_of("lab.deeper") == lab / "lab" / "deeper" / "__init__.py"
    assert file_of("lab.deeper.third.THIRD") is None
    assert file_of("sys") is None
    assert file_of("pt_peft.schema") == Path(pt_peft.__path__[0]) / "schema.py"


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A copy of the package, which a test may change."""
    shutil.copytree(pt_peft.__path__[0], tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pt_peft, "__path__", [str(tmp_path / "code")])
    return tmp_path / "code"


PIXELS = ("pt_peft.data.pixels",)
MODEL = ("pt_peft.model.frozen_prefix", "pt_peft.methods")
EXCHANGE = ("pt_peft.model.planned_exchange", "pt_peft.methods")


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("data/dicom.py", {PIXELS}),
        ("data/transforms.py", {PIXELS}),
        ("data/lesion_patterns.py", {PIXELS}),
        ("experiment/preprocessing.py", {PIXELS, MODEL, EXCHANGE}),
        ("seeds.py", {PIXELS, MODEL, EXCHANGE}),
        ("model/model_input.py", {MODEL}),
        ("model/weights/npz.py", {MODEL, EXCHANGE}),
        ("methods/lora.py", {MODEL, EXCHANGE}),
        ("exchange/schedule.py", {MODEL, EXCHANGE}),
        ("data/partition/even.py", set()),
        ("data/augmentation.py", set()),
        ("commands/predict.py", set()),
        ("federation/server.py", set()),
    ],
)
def test_which_caches_a_file_belongs_to(code, file, keys):
    before = {key: fresh(*key) for key in (PIXELS, MODEL, EXCHANGE)}
    (code / file).write_text((code / file).read_text() + "# changed\n")
    assert {key for key in before if fresh(*key) != before[key]} == keys


def test_a_copy_has_the_same_key(code):
    """A clone, an installed wheel, and a job's bundle."""
    there = fresh(*MODEL)
    setattr(pt_peft, "__path__", [str(Path(__file__).parents[1] / "pt_peft")])  # noqa: B010  # restored by `code`
    assert fresh(*MODEL) == there
