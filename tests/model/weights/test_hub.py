"""Published weights, fetched from a stand-in of the hub."""

import hashlib
import http.server
import json
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import timm
import torch
from huggingface_hub import constants
from random_models import PLAIN, load, original, same_features

from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.model.backbone import weights_file
from pt_peft.schema import parse

NAME = f"{PLAIN}.augreg_in21k_ft_in1k"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as one download needs."""

    content = b""
    held = f"/timm/{NAME}/resolve/main/pytorch_model.bin"
    """The address of the only file."""
    refusal: tuple[int, str] = (404, "EntryNotFound")
    """What is said of any other."""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        found = self.path == self.held
        status, code = self.refusal
        revision = self.path.split("/")[4]
        self.send_response(200 if found else status)
        self.send_header("X-Repo-Commit", revision if len(revision) == 40 else "0" * 40)
        self.send_header("Content-Length", str(len(self.content)) if found else "0")
        self.send_header("ETag", '"1234"') if found else self.send_header("X-Error-Code", code)
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
    for name in ("vit", "a/b@", "a/b@c@d", "a/b/", "https://huggingface.co/a/b"):
        with pytest.raises(UserError, match=rf"'hf-hub:{name}', which is no name on the Hugging Face Hub; 'hf-hub:ORG"):
            weights_file(Site(backbone=f"hf-hub:{name}"))


@pytest.mark.parametrize(
    ("name", "held"),
    [
        (f"clinic/vit@{'5' * 40}", f"/clinic/vit/resolve/{'5' * 40}/pytorch_model.bin"),
        ("clinic/vit@v1.0", "/clinic/vit/resolve/v1.0/open_clip_pytorch_model.bin"),
        ("clinic/vit", "/clinic/vit/resolve/main/pytorch_model.bin"),
        ("clinic/vit@v1.0/weights/last.pth", "/clinic/vit/resolve/v1.0/weights/last.pth"),
        ("clinic/vit/last.pth", "/clinic/vit/resolve/main/last.pth"),
    ],
)
def test_weights_of_any_repository_at_a_revision(name, held, hub, tmp_path, monkeypatch):
    model = original()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    hub((tmp_path / "w.pth").read_bytes())
    monkeypatch.setattr(Hub, "held", held)
    (tmp_path / "site.json").write_text(json.dumps({"backbone": f"hf-hub:{name}"}))
    site = Site.read(tmp_path / "site.json")
    assert site.backbone == f"hf-hub:{name}"
    path = weights_file(site)
    assert same_features(load(path), model)
    Hub.asked.clear()
    assert weights_file(site) == path
    assert not Hub.asked


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            (403, "GatedRepo"),
            "its owners give it to those who accept their terms on its page and log in by `hf auth login`",
        ),
        ((404, "RepoNotFound"), "the Hub has no such repository, or shows it only to members who log in"),
        ((404, "RevisionNotFound"), "the repository has no such revision"),
        (
            (404, "EntryNotFound"),
            "the repository has no model.safetensors, open_clip_model.safetensors, pytorch_model.bin, ",
        ),
    ],
)
def test_what_the_hub_does_not_give(refusal, message, hub, monkeypatch):
    monkeypatch.setattr(Hub, "refusal", refusal)
    with pytest.raises(UserError, match=rf"'hf-hub:clinic/vit@v9', which cannot be fetched \(.*{message}"):
        weights_file(Site(backbone="hf-hub:clinic/vit@v9"))


def test_the_hub_without_a_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"'hf-hub:clinic/vit@v9', which is not cached .*, such as one that `hf download`"
    ):
        weights_file(Site(backbone="hf-hub:clinic/vit@v9"))


@pytest.mark.parametrize(
    "name", ["hf-hub:clinic/vit", "hf_hub:clinic/vit", "local-dir:/home", "timm:vit_tiny_patch16_224"]
)
def test_a_job_names_no_place(name, tiny):
    job = tiny.model_dump(mode="json")
    job["backbone"]["name"] = name
    message = rf"field 'backbone.name' is \"{name}\": a job names an architecture of timm, .* site.json to say"
    with pytest.raises(UserError, match=message):
        parse(Experiment, job, "experiment.json")


def test_a_folder_of_weights_names_the_file_in_it(tmp_path):
    (tmp_path / "model-00001.safetensors").touch()
    with pytest.raises(UserError, match=r"not a file; the weights in it, such as '.*/model-00001.safetensors'"):
        weights_file(Site(backbone=str(tmp_path)))
