"""What a cached image depends on besides its file: the code is `code_key`'s, and decoders may come and go."""

import importlib
import re
import sys
from importlib import metadata

import pytest
from PIL import features
from pydicom.pixels import decoders

from pt_peft import code_key
from pt_peft.data import pixel_code


@pytest.fixture(autouse=True)
def _new_process():
    yield
    code_key.code_key.cache_clear()
    pixel_code.pixel_code.cache_clear()


def fresh() -> str:
    code_key.code_key.cache_clear()
    pixel_code.pixel_code.cache_clear()
    importlib.invalidate_caches()
    return pixel_code.pixel_code()


@pytest.mark.parametrize("name", ["pillow", "monai", "pydicom", "torch", *pixel_code.DECODERS.values()])
def test_the_version_of_a_package_changes_the_code(monkeypatch, name):
    before = fresh()
    version = metadata.version
    monkeypatch.setattr(code_key, "version", lambda package: "0.0" if package == name else version(package))
    assert fresh() != before
    monkeypatch.undo()
    assert fresh() == before


@pytest.mark.parametrize("module", pixel_code.DECODERS)
def test_a_decoder_that_appears_without_a_distribution_changes_the_code(monkeypatch, tmp_path, module):
    """As GDCM from a system's own packages."""

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    names = set(pixel_code.DECODERS.values())
    version = metadata.version
    monkeypatch.setattr(code_key, "version", lambda name: missing(name) if name in names else version(name))
    for loaded in [one for one in sys.modules if one.partition(".")[0] == module.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, loaded)
    before = fresh()
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    after = fresh()
    file.write_text("VERSION = 2\n")
    assert len({before, after, fresh()}) == 3


@pytest.mark.parametrize("library", pixel_code.LIBRARIES)
def test_the_version_of_a_library_changes_the_code(monkeypatch, library):
    before = fresh()
    version = features.version
    monkeypatch.setattr(features, "version", lambda name: "0.0" if name == library else version(name))
    assert fresh() != before


def test_the_decoders_are_all_that_pydicom_and_pillow_know():
    found = [value for name, value in vars(decoders).items() if name.endswith("Decoder")]
    wanted = " ".join(line for one in found for line in one.missing_dependencies)
    named = set(re.findall(r"(?:requires|and) ([a-z0-9-]+)", wanted)) - {"numpy"}
    assert {"python-gdcm" if name == "gdcm" else name for name in named} <= set(pixel_code.DECODERS.values())
    assert {plugin for one in found for plugin in one.available_plugins} <= {
        "gdcm", "pillow", "pydicom", "pyjpegls", "pylibjpeg", "0.8.0+nvimgcodec",
    }  # fmt: skip
    assert set(features.codecs) <= set(pixel_code.LIBRARIES)
