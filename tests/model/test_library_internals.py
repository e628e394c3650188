"""Other libraries' private names: what happens to them, and without them."""

import peft
import peft.tuners.boft.layer as boft_layer
import pytest
from torch import nn

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.export.peft_folder import write
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, save_adapter
from pt_peft.model.frozen_prefix import frozen_prefix
from pt_peft.model.library_internals import has_forward_hooks, without_boft_extension

BOFT = {"name": "boft", "options": {}}


def test_boft_leaves_hf_peft_as_it_was(tiny, tiny_weights, tmp_path, monkeypatch):
    calls = []

    def compiles():
        calls.append("compiled")

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", compiles)
    experiment = changed(tiny, method=BOFT)
    model = build_model(experiment.model, tiny_weights)
    save_adapter(tmp_path / "a.safetensors", model.state(), adapter_header(experiment) | {"round": 2})
    write(tmp_path / "a.safetensors", tiny_weights, tmp_path / "peft")
    assert not calls
    assert boft_layer.get_fbd_cuda is compiles
    # Others' layers in the same process are HF PEFT's own.
    plain = nn.Sequential(nn.Linear(8, 8))
    peft.get_peft_model(plain, peft.BOFTConfig(boft_block_size=4, target_modules=["0"]))
    assert calls == ["compiled"]


def test_it_is_restored_after_an_error():
    before = boft_layer.get_fbd_cuda

    @without_boft_extension()
    def fail():
        assert boft_layer.get_fbd_cuda is not before
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert boft_layer.get_fbd_cuda is before


@pytest.mark.parametrize("instead", [None, lambda device: None])
def test_boft_refuses_another_hf_peft(tiny, monkeypatch, instead):
    if instead:
        monkeypatch.setattr(boft_layer, "get_fbd_cuda", instead)
    else:
        monkeypatch.delattr(boft_layer, "get_fbd_cuda")
    with pytest.raises(UserError, match=r"'boft' cannot be applied .*: HF PEFT .* makes BOFT's CUDA extension"):
        build_model(changed(tiny, method=BOFT).model, None)
    build_model(changed(tiny, method={"name": "lora", "options": {}}).model, None)


def test_hooks_are_seen():
    layer = nn.Linear(1, 1)
    assert not has_forward_hooks(layer)
    handle = layer.register_forward_pre_hook(lambda module, inputs: None)
    assert has_forward_hooks(layer)
    handle.remove()
    layer.register_forward_hook(lambda module, inputs, output: None)
    assert has_forward_hooks(layer)


@pytest.mark.parametrize("name", ["_forward_hooks", "_forward_pre_hooks"])
def test_without_torchs_list_of_hooks_there_is_no_frozen_prefix(name, tiny):
    method = {"name": "lora", "options": {"lora": {"last_blocks": 1}}}
    model = build_model(changed(tiny, method=method).model, None)
    assert frozen_prefix(model)
    vars(model.module.patch_embed).pop(name)
    assert frozen_prefix(model) is None
