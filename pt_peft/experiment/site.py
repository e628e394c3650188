"""What a site keeps to itself: the schema of `site.json`, which never leaves the site."""

import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, PlainSerializer, model_validator

from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.own_images import Location, SiteData
from pt_peft.experiment.sections import SiteName
from pt_peft.schema import Strict

TIMM_PREFIX, HUB_PREFIX = "timm:", "hf-hub:"
"""Prefixes of the names of published weights, in place of a file's path: timm's, and those of any repository on the
Hugging Face Hub."""


def _open_if_null(value: object) -> object:
    return Limits.open() if value is None else value


def _null_if_open(limits: Limits) -> dict[str, JsonValue] | None:
    return None if limits == Limits.open() else limits.model_dump(mode="json", exclude_defaults=True)


def _named(value: object) -> object:
    if not (isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value)):
        raise ValueError("'auto', 'cpu', 'cuda' or the number of a GPU, such as 'cuda:1', would be right")
    return value


Device = Annotated[
    Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern=r"^cuda:\d{1,3}$")], BeforeValidator(_named)
]
"""Name of a device."""


class Site(Strict):
    """A site's own settings; every field has a default, so that a simulation needs no file."""

    data: SiteData = SiteData()
    """What the images are, where they lie and what they mean."""
    backbone: Location | None = None
    """Weights file (``.safetensors``, what `torch.save` writes, ``.npz``), or the name of published weights, which are
    fetched once: timm's (``timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k``), or those of a repository on the Hugging
    Face Hub, at a revision (``hf-hub:ORGANISATION/NAME@REVISION``, and ``/FILE`` where its file has a name of its
    own); null takes the embedded backbone."""
    device: Device = "auto"
    """Device of training and evaluation; ``auto`` takes the first GPU where there is one, ``cuda`` is ``cuda:0``. GPUs
    are those that the site's FLARE process sees: ``CUDA_VISIBLE_DEVICES`` counts them from 0."""
    gpu_memory_share: float = Field(default=1.0, gt=0, le=1)
    """Largest share of the GPU's memory that a process of the site takes; in a simulation one process serves all sites
    of a GPU."""
    compile: bool = False
    """Whether training steps run through ``torch.compile``, which compiles at the start of a job. A model
    that cannot be compiled trains without it. ``docs/benchmark/speed.md`` has what it gave on a CPU."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of torch; null takes 1 in a simulation, where results then do not depend on ``-t``, else all cores."""
    cache: Location | None = None
    """Folder of the preprocessed-image cache; null takes ``$XDG_CACHE_HOME/pt_peft`` or ``~/.cache/pt_peft``."""
    cache_gb: float = Field(default=50.0, gt=0, le=1e6)
    """Largest size of the cache, 10^9 bytes. Least recently used images are evicted."""
    encryption_contexts: Location | None = None
    """Folder with FLARE's ``client_context.tenseal``, or at the server ``server_context.tenseal``, for jobs with
    ``encryption``; null takes the ``startup`` folder of a provisioned kit."""
    max_unreadable: float = Field(default=0.01, ge=0, lt=1)
    """Largest share of the site's images that may be unreadable. They are skipped with a warning; a larger share stops
    the site."""
    limits: Annotated[Limits, BeforeValidator(_open_if_null), PlainSerializer(_null_if_open)] = Limits()
    """Bounds on what jobs may ask of the site; null allows anything."""
    sites: dict[SiteName, dict[str, JsonValue]] = Field(default={})
    """Fields that a simulated site has in place of those above, by its name: ``{"site-2": {"threads": 2}}``. Of a
    section such as ``data``, fields that are not named stay as they are above. For FLARE's simulator, whose sites share
    one file; a site of a federation has a file of its own, and refuses this field."""

    @model_validator(mode="after")
    def _each_site_is_valid(self) -> Self:
        for name, own in self.sites.items():
            if "sites" in own:
                raise ValueError(f"field 'sites.{name}.sites' is unknown: a simulated site has no sites of its own")
            try:
                self.at(name, self.sites)
            except UserError as error:
                raise ValueError(str(error).rstrip(".")) from None
        return self

    @classmethod
    def read(cls, path: str | Path) -> "Site":
        """Reads `site.json`, making its paths absolute. Raises UserError."""
        return schema.read(cls, path).located(Path(path).resolve().parent)

    def located(self, base: Path) -> "Site":
        """With absolute paths: relative ones start at `base`."""

        def absolute(value: str) -> str:
            return str(base / os.path.expanduser(value))

        backbone = self.backbone
        if backbone is not None and not backbone.startswith((TIMM_PREFIX, HUB_PREFIX)):
            backbone = absolute(backbone)
        cache, contexts = (path and absolute(path) for path in (self.cache, self.encryption_contexts))
        there = {"data": self.data.located(absolute), "cache": cache, "encryption_contexts": contexts}
        at_sites = {name: self.at(name, self.sites).located(base).model_dump(mode="json") for name in self.sites}
        sites = {name: _chosen(at_sites[name], own) for name, own in self.sites.items()}
        return self.model_copy(update={"backbone": backbone, **there, "sites": sites})

    def at(self, name: str, names: Collection[str]) -> "Site":
        """The settings of the simulated site `name`.

        Args:
            name: the site.
            names: all sites of the simulation.

        Raises:
            UserError: if `sites` has a site that is not one of them.
        """
        if unknown := sorted(self.sites.keys() - set(names)):
            raise UserError(
                f"site.json: field 'sites' names {', '.join(unknown)}, but the sites are {', '.join(names)}.", "sites"
            )
        if not self.sites:
            return self
        common = self.model_copy(update={"sites": {}})
        return schema.parse(Site, _replaced(common, self.sites.get(name, {})), f"sites.{name}")

    def existing(self, field: str) -> Path:
        """The file or folder that `field` (``backbone``, ``data.images`` …) names.

        Raises:
            UserError: if the field is not set or what it names is not there.
        """
        value: object = self
        for part in field.split("."):
            value = getattr(value, part)
        if not isinstance(value, str):
            raise UserError(
                f"site.json: field '{field}' is not set, but data.source '{self.data.source}' there needs it.", field
            )
        try:
            there = Path(value).exists()
        except OSError:  # too long a name, for one
            there = False
        if not there:
            raise UserError(f"site.json: field '{field}' is {value!r}, which does not exist.", field)
        return Path(value)

    def allowed_unreadable(self, images: int) -> int:
        """The number of unreadable images that the site accepts among `images`."""
        return math.floor(self.max_unreadable * images + 1e-9)

    def cache_folder(self) -> Path:
        """Folder of the preprocessed-image cache (not created here)."""
        if self.cache:
            return Path(self.cache)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pt_peft"


def _replaced(record: BaseModel, own: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The fields of `record` as JSON, with those of `own` in their place."""
    fields: dict[str, JsonValue] = record.model_dump(mode="json")
    for name, value in own.items():
        section = getattr(record, name, None)
        fields[name] = (
            _replaced(section, value) if isinstance(section, BaseModel) and isinstance(value, dict) else value
        )
    return fields


def _chosen(fields: Mapping[str, JsonValue], names: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The fields of `names`, as `fields` has them; it leaves defaults out where ``limits`` does."""
    pairs = ((name, fields.get(name, inner), inner) for name, inner in names.items())
    return {
        name: _chosen(value, inner) if isinstance(value, dict) and isinstance(inner, dict) else value
        for name, value, inner in pairs
    }
