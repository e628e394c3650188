"""One image of a source, before any pixel is decoded."""

from dataclasses import dataclass
from typing import Literal, get_args

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True, slots=True)
class Item:
    """What a source knows of an image without reading it."""

    file: str
    """Path inside the folder or archive, unique in its source; ``<split>/<index>`` for ``npz``."""
    label: int
    """Index into ``data.classes``."""
    split: SplitName | None
    """None until `splits.assign_splits` has drawn it."""
    group: str
    """Images of one group (patient, lesion) stay together; the file itself where images are not grouped."""
    site: str | None = None
    """The site the source says the image came from."""
