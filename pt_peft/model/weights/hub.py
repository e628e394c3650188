"""Published weights by their name, fetched once into the caches of Hugging Face and torch."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.error import URLError
from urllib.parse import urlsplit

import timm
import torch.hub
from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]  # of its own types, one is bare
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import PretrainedCfg

from pt_peft.errors import UserError
from pt_peft.experiment.site import HUB_PREFIX, TIMM_PREFIX

_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""Weights files in repositories of timm, transformers and open_clip, the better ones first."""
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[\w./-]+))?")
"""``ORGANISATION/NAME@REVISION/FILE``, as in the addresses ``hf://`` of Hugging Face."""


def fetch(name: str) -> Path:
    """The local file of published weights. The network is used only if they are not cached.

    Args:
        name: timm's name of the weights after `TIMM_PREFIX`, ``architecture.tag``; or after `HUB_PREFIX` a repository
            on the Hugging Face Hub, ``ORGANISATION/NAME``, with ``@REVISION`` (a commit, tag or branch; without one
            ``main``) and ``/FILE`` (without one the first of `_FILES` that it has).

    Raises:
        UserError: if there are no such weights, or they are not cached and cannot be fetched.
    """
    where = f"site.json: field 'backbone' is '{name}'"
    try:
        if name.startswith(HUB_PREFIX):
            return _from_hugging_face(*_parted(name, where))
        published = _published(name.removeprefix(TIMM_PREFIX), where)
        if published.hf_hub_id:
            return _from_hugging_face(published.hf_hub_id, None, _FILES)
        if published.url:
            return _from_url(published.url)
        raise LookupError("timm knows no address of them")
    except UserError:
        raise
    except (LocalEntryNotFoundError, URLError, ConnectionError):
        raise UserError(
            f"{where}, which is not cached on this machine, and without a network connection it cannot be fetched; the "
            "path of a file would be right, such as one that `hf download` has put into a folder where there is a "
            "network."
        ) from None
    except Exception as error:  # the two clients, and what they are built on, raise many
        raise UserError(
            f"{where}, which cannot be fetched ({_reason(error)}); the path of a file would be right."
        ) from None


def _reason(error: Exception) -> str:
    """What a client's error means to who wrote the name."""
    match error:
        case GatedRepoError():
            return "its owners give it to those who accept their terms on its page and log in by `hf auth login`"
        case RepositoryNotFoundError():
            return "the Hub has no such repository, or shows it only to members who log in by `hf auth login`"
        case RevisionNotFoundError():
            return "the repository has no such revision"
        case _:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _parted(name: str, where: str) -> tuple[str, str | None, Sequence[str]]:
    """Repository, revision, and the files of which the first that it has is meant."""
    found = _NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if not found:
        raise UserError(
            f"{where}, which is no name on the Hugging Face Hub; '{HUB_PREFIX}ORGANISATION/NAME@REVISION', and '/FILE' "
            "where its file has a name of its own, would be right."
        )
    return found["repository"], found["revision"], (found["file"],) if found["file"] else _FILES


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


def _from_hugging_face(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    # The cache first: the experiment pins the digest, so that a newer commit of a branch would be of no use.
    for file in files:
        with suppress(EntryNotFoundError):
            return _downloaded(repository, revision, file, local_files_only=True)
    for file in files:
        try:
            return _downloaded(repository, revision, file)
        except LocalEntryNotFoundError:  # no network, which the next file would tell after as many tries
            raise
        except EntryNotFoundError:
            pass
    raise LookupError(f"the repository has no {', '.join(files)}")


def _downloaded(repository: str, revision: str | None, file: str, local_files_only: bool = False) -> Path:
    return Path(
        hf_hub_download(
            repository,
            file,
            revision=revision,
            library_name="timm",
            library_version=timm.__version__,
            local_files_only=local_files_only,
        )
    )
