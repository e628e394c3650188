"""Published weights by their name in timm, fetched once into the caches of Hugging Face and torch."""

from pathlib import Path
from urllib.error import URLError

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import PretrainedCfg
from timm.models._hub import download_cached_file

from pt_peft.errors import UserError
from pt_peft.experiment.site import TIMM_PREFIX

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Of a repository of timm's, the better one first."""


def fetch(name: str) -> Path:
    """The local file of the weights that timm calls `name`, ``architecture.tag``. No network is asked if it is cached.

    Raises:
        UserError: if timm knows no such weights, or they are neither cached nor to be had.
    """
    where = f"site.json: field 'backbone' is '{TIMM_PREFIX}{name}'"
    published = _published(name, where)
    try:
        if published.hf_hub_id:
            return _from_hugging_face(published.hf_hub_id)
        return Path(download_cached_file(published.url))
    except (LocalEntryNotFoundError, URLError, ConnectionError):
        raise UserError(
            f"{where}, which is not cached on this machine, and without a network connection it cannot be fetched; the path of "
            "a file would be right."
        ) from None
    except Exception as error:  # whatever the two clients, and what they are built on, raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{where}, which cannot be fetched ({reason}); the path of a file would be right.") from None


def _published(name: str, where: str) -> PretrainedCfg:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(
            f"{where}, but timm knows no architecture '{architecture}'; '{TIMM_PREFIX}vit_base_patch16_224.mae' would be right."
        )
    known = sorted(one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*"))
    if tag not in known:
        shown = ", ".join(f"{TIMM_PREFIX}{architecture}.{one}" for one in known) or "the path of a file"
        raise UserError(f"{where}, but timm knows no weights of that name; {shown} would be right.")
    return timm.get_pretrained_cfg(name)


def _from_hugging_face(repository: str) -> Path:
    # The cache first: the experiment pins the digest, so that a newer revision would be of no use.
    for local_files_only in (True, False):
        for file in _FILES:
            try:
                return Path(
                    hf_hub_download(
                        repository,
                        file,
                        library_name="timm",
                        library_version=timm.__version__,
                        local_files_only=local_files_only,
                    )
                )
            except EntryNotFoundError as error:
                missing = error
                if not local_files_only and isinstance(error, LocalEntryNotFoundError):
                    raise  # no network, which the other file would tell after as many tries
    raise missing
