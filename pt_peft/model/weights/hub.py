"""Published weights by their name in timm, fetched once into the caches of Hugging Face and torch."""

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.error import URLError
from urllib.parse import urlsplit

import timm
import torch.hub
from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]  # of its own types, one is bare
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import PretrainedCfg

from pt_peft.errors import UserError
from pt_peft.experiment.site import TIMM_PREFIX

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights files in timm's repositories, the better one first."""


def fetch(name: str) -> Path:
    """The local file of published weights. The network is used only if they are not cached.

    Args:
        name: timm's name of the weights, ``architecture.tag``.

    Raises:
        UserError: if timm knows no such weights, or they are not cached and cannot be fetched.
    """
    where = f"site.json: field 'backbone' is '{TIMM_PREFIX}{name}'"
    published = _published(name, where)
    try:
        if published.hf_hub_id:
            return _from_hugging_face(published.hf_hub_id)
        if published.url:
            return _from_url(published.url)
        raise LookupError("timm knows no address of them")
    except (LocalEntryNotFoundError, URLError, ConnectionError):
        raise UserError(
            f"{where}, which is not cached on this machine, and without a network connection it cannot be fetched; the "
            "path of a file would be right."
        ) from None
    except Exception as error:  # the two clients, and what they are built on, raise many
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{where}, which cannot be fetched ({reason}); the path of a file would be right.") from None


def _published(name: str, where: str) -> PretrainedCfg:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(
            f"{where}, but timm knows no architecture '{architecture}'; '{TIMM_PREFIX}vit_base_patch16_224.mae' would "
            "be right."
        )
    known = sorted(one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*"))
    published = timm.get_pretrained_cfg(name) if tag in known else None
    if published is None:
        shown = ", ".join(f"{TIMM_PREFIX}{architecture}.{one}" for one in known) or "the path of a file"
        raise UserError(f"{where}, but timm knows no weights of that name; {shown} would be right.")
    return published


def _from_url(url: str | tuple[str, str]) -> Path:
    """The file in torch's cache, where timm keeps it too. Its name has the beginning of its digest."""
    address, file = url if isinstance(url, tuple) else (url, PurePosixPath(urlsplit(url).path).name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([a-f0-9]{8,})\.", file)
        torch.hub.download_url_to_file(address, str(path), digest and digest[1], progress=False)
    return path


def _from_hugging_face(repository: str) -> Path:
    # The cache first: the experiment pins the digest, so that a newer revision would be of no use.
    for file in _FILES:
        with suppress(EntryNotFoundError):
            return _downloaded(repository, file, local_files_only=True)
    first, second = _FILES
    try:
        return _downloaded(repository, first)
    except LocalEntryNotFoundError:  # no network, which the second file would tell after as many tries
        raise
    except EntryNotFoundError:
        return _downloaded(repository, second)


def _downloaded(repository: str, file: str, local_files_only: bool = False) -> Path:
    return Path(
        hf_hub_download(
            repository,
            file,
            library_name="timm",
            library_version=timm.__version__,
            local_files_only=local_files_only,
        )
    )
