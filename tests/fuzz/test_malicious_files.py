"""A file that would run code when unpickled is refused, or made anew, and its code does not run."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from nvflare.apis.fl_context import FLContext

from helpers import at_size
from pt_peft.data.cache import cached_images
from pt_peft.data.items import Item
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft.model.weights.formats import read_file
from pt_peft.presets import demo
from pt_peft_flare.checkpoint import CheckpointFile


class Program:
    """Makes `trace` when unpickled."""

    def __init__(self, trace: Path):
        self._trace = trace

    def __reduce__(self):
        return Path.touch, (self._trace,)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace"
    pickle.loads(pickle.dumps(Program(path)))
    assert path.exists(), "the tests here could not fail"
    path.unlink()
    yield path
    assert not path.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_backbone_weights(tmp_path, trace, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(2), "more": Program(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"weights.pth"):
        read_file(path)


@pytest.mark.parametrize("named", ["adapter.safetensors", "adapter.pt"])
def test_adapter(tmp_path, trace, named):
    path = tmp_path / named
    path.write_bytes(pickle.dumps(Program(trace)))
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_adapter(path)


def test_checkpoint(tmp_path, trace):
    workspace = SimpleNamespace(root_dir=str(tmp_path))
    fl_ctx = SimpleNamespace(get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace))
    (tmp_path / "checkpoints").mkdir()
    torch.save(Program(trace), tmp_path / "checkpoints" / "job.safetensors")
    with pytest.raises(UserError, match="is not a safetensors file"):
        CheckpointFile(cast(FLContext, fl_ctx), "job", demo("lora")[0]).load()


class Images:
    """Two training images."""

    def key(self):
        return "key"

    def items(self, split):
        return [Item(name, (0,), split, name) for name in "ab"] if split == "train" else []

    def decoded(self, split, decoding):
        return iter([np.full((3, decoding.image_size, decoding.image_size), 7, np.uint8) for _ in "ab"])


@pytest.mark.parametrize("as_npy", [True, False])
def test_image_cache(tmp_path, trace, as_npy):
    site = Site(cache=str(tmp_path / "cache"))
    cached_images(site, Images(), at_size(8))
    path = next((tmp_path / "cache").rglob("train_images.npy"))
    if as_npy:
        np.save(path, np.array([Program(trace), None], dtype=object))
    else:
        path.write_bytes(pickle.dumps(Program(trace)))
    assert (cached_images(site, Images(), at_size(8))["train"].images == 7).all()
