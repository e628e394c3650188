"""Published weights, fetched from a stand-in of the hub."""

import http.server
import threading

import pytest
import torch
from random_models import PLAIN, load, original, same_features

from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.model.backbone import weights_file

NAME = f"{PLAIN}.augreg_in21k_ft_in1k"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as one download needs."""

    content = b""
    asked: list[str] = []

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

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a file into a hub of its own, with an empty cache."""
    from huggingface_hub import constants

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


def test_published_weights_without_a_network(hub, monkeypatch):
    from huggingface_hub import constants

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
