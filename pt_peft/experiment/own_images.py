"""What a site's own images are, and what their labels mean: the section ``data`` of `site.json`."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator

from pt_peft.experiment.sections import Name
from pt_peft.schema import Strict

PUBLISHED = ("ham10000", "isic2019", "fed_isic2019")
"""Data sets that are read in their published layouts, see `pt_peft.data.published`."""

Location = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]
"""A path of the operating system."""
LOCATIONS = ("images", "table", "npz")
"""The fields of `SiteData` that are paths; the others say what the images mean."""


class Columns(Strict):
    """Column names of the site's CSV table; a column that is null is not used."""

    file: Name = "file"
    """Column with the image's path inside the folder or zip archive."""
    label: Name = "label"
    """Column with the value that ``data.classes`` gives a meaning; for ``multilabel`` values joined by ``|``, or
    nothing."""
    split: Name | None = "split"
    """Column with ``train``, ``val`` or ``test``; null: the seed draws the splits."""
    group: Name | None = None
    """Column with the patient or lesion: images of one group stay in one split."""
    site: Name | None = None
    """Column with the site an image comes from, for ``partition.kind = natural``."""

    @field_validator("label")
    @classmethod
    def _no_file(cls, value: str, info: ValidationInfo) -> str:
        if value == info.data.get("file"):
            raise ValueError("a column of its own would be right: 'columns.file' is the same")
        return value


class SiteData(Strict):
    """The site's own images: where they lie, and what their labels mean. A job names classes and can change none of it.

    Relative paths start at the folder of `site.json`.
    """

    source: Literal["csv", "image_folder", "npz", "ham10000", "isic2019", "fed_isic2019"] = "csv"
    """``csv``: a table beside a folder or zip of images; ``image_folder``: a folder or zip with a sub-folder for each
    value of the label, optionally below train, val and test; ``npz``: MedMNIST's files; the other names: data sets in
    their published layouts."""
    images: Location | None = None
    """Folder or zip archive of images, for ``csv`` and ``image_folder``; the folder of a published data set."""
    table: Location | None = None
    """CSV file with a header, for ``csv``."""
    npz: Location | None = None
    """MedMNIST-style ``.npz``, for ``npz``."""
    columns: Columns = Columns()
    """Columns of the table; used by ``csv``."""
    classes: dict[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] = Field(default={})
    """The site's values that mean a class of the experiment: ``{"melanoma": ["mel", "MM"]}``. They stand in the label
    column, name the sub-folders, or are numbers of labels in an ``npz``. A class that is not listed is meant by its own
    name; in an ``npz`` by its place in the experiment's ``data.classes``, counted from 0."""
    no_finding: Name | None = None
    """The site's value for images of no class, for ``multilabel``; an empty cell says the same."""
    pooled: bool = False
    """Whether simulated sites share these images, so that the experiment's ``partition`` deals them out. A site of its
    own uses all of its images as they are, and refuses a job that would deal them out, take a part of them or change
    how they look."""

    def located(self, place: Callable[[str], str]) -> Self:
        """With `place` of each path instead of the path."""
        paths = {field: getattr(self, field) for field in LOCATIONS}
        return self.model_copy(update={field: path and place(path) for field, path in paths.items()})

    def meaning(self) -> dict[str, JsonValue]:
        """All but the paths: with an experiment it decides what is counted as which class."""
        return self.model_dump(mode="json", exclude=set(LOCATIONS))
