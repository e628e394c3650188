"""Published weights, fetched from a stand-in of the hub."""

import hashlib
import http.server
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import timm
import torch
from huggingface_hub import constants
from random_models import PLAIN, load, original, same_features

from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.model.backbone import weights_file

NAME = f"{PLAIN}.augreg_in21k_ft_in1k"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as one download needs."""

    content = b""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        found = self.path == f"/timm/{NAME}/resolve/main/pytorch_model.bin"
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)) if found else "0")
        self.send_header("ETag", '"1234"') if found else self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(self.content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a file into a hub of its own, with an empty cache."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(Hub, "asked", [])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield lambda content: monkeypatch.setattr(Hub, "content", content)
    server.shutdown()
    server.server_close()


def test_published_weights_are_fetched_once(hub, tmp_path):
    model = original()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    hub((tmp_path / "w.pth").read_bytes())
    (tmp_path / "site.json").write_text(f'{{"backbone": "timm:{NAME}"}}')
    site = Site.read(tmp_path / "site.json")
    assert site.backbone == f"timm:{NAME}"
    path = weights_file(site)
    assert same_features(load(path), model)
    assert sha256_of(path) == sha256_of(tmp_path / "w.pth")
    assert f"/timm/{NAME}/resolve/main/model.safetensors" in Hub.asked
    Hub.asked.clear()
    assert weights_file(site) == path
    assert not Hub.asked


def test_published_weights_at_an_address_of_their_own(hub, tmp_path, monkeypatch):
    """As those of MAE and DINO, which are in no repository of timm's."""
    torch.save(original().state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    hub(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # The stand-in has one file, under any name.
    monkeypatch.setattr(Hub, "do_HEAD", lambda self: Hub.asked.append(self.path) or answer(self, content))
    known = timm.get_pretrained_cfg(NAME)
    assert known
    published = replace(known, hf_hub_id=None, url=f"{constants.ENDPOINT}/w-{digest[:8]}.pth")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: published)
    path = weights_file(Site(backbone=f"timm:{NAME}"))
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / f"w-{digest[:8]}.pth"
    assert path.read_bytes() == content
    assert Hub.asked == [f"/w-{digest[:8]}.pth"]
    assert weights_file(Site(backbone=f"timm:{NAME}")) == path
    assert len(Hub.asked) == 1
    monkeypatch.setattr(
        timm, "get_pretrained_cfg", lambda name: replace(published, url=f"{constants.ENDPOINT}/w-{'0' * 8}.pth")
    )
    with pytest.raises(UserError, match=r"which cannot be fetched .*hash"):
        weights_file(Site(backbone=f"timm:{NAME}"))


def answer(request, content):
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    return True


def test_published_weights_without_a_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"'timm:{NAME}', which is not cached on this machine, and without a network"):
        weights_file(Site(backbone=f"timm:{NAME}"))


def test_unknown_published_weights():
    with pytest.raises(
        UserError, match=rf"'timm:{PLAIN}.none', but timm knows no weights of that name; timm:{NAME[:-9]}"
    ):
        weights_file(Site(backbone=f"timm:{PLAIN}.none"))
    with pytest.raises(UserError, match="timm knows no architecture 'vit_none'"):
        weights_file(Site(backbone="timm:vit_none.mae"))
    with pytest.raises(UserError, match="'hf-hub:timm/vit', which does not exist"):
        weights_file(Site(backbone="hf-hub:timm/vit"))


def test_a_folder_of_weights_names_the_file_in_it(tmp_path):
    (tmp_path / "model-00001.safetensors").touch()
    with pytest.raises(UserError, match=r"not a file; the weights in it, such as '.*/model-00001.safetensors'"):
        weights_file(Site(backbone=str(tmp_path)))
