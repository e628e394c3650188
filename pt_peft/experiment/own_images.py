"""What a site's own images are, and what their labels mean: the section ``data`` of `site.json`."""

import re
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, field_validator, model_validator

from pt_peft.experiment.sections import Name
from pt_peft.schema import Strict

PUBLISHED = ("ham10000", "isic2019", "fed_isic2019")
"""Data sets that are read in their published layouts, see `pt_peft.data.published`."""

Frames = Annotated[int, Field(ge=0, lt=2**31)] | Literal["all"] | None
"""The values of ``data.frames``."""
Location = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]
"""A path of the operating system."""


def _with_a_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression ({error})") from None
    if "group" not in groups:
        raise ValueError("has no group (?P<group>…), which would be the patient")
    return pattern


GroupPattern = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_with_a_group)]
"""A regular expression with a group of the name ``group``."""
LOCATIONS = ("images", "table", "npz")
"""The fields of `SiteData` that are paths; the others say what the images mean."""


class Columns(Strict):
    """Column names of the site's CSV table; a column that is null is not used."""

    file: Name = "file"
    """Column with the image's path inside the folder or zip archive."""
    label: Name | None = "label"
    """Column with the value that ``data.classes`` gives a meaning; for ``multilabel`` values joined by ``|``, or
    nothing. null: each of these values has a column of its own, with 1, 0 or nothing, and for ``multilabel`` -1 where
    it is uncertain, as in CheXpert (Irvin et al. 2019, arXiv:1901.07031); nothing says 0."""
    split: Name | None = "split"
    """Column with ``train``, ``val`` or ``test``, or the longer words for them, in any case; null: the seed draws the
    splits."""
    group: Name | None = None
    """Column with the patient or lesion: images of one group stay in one split. A table in which more than 5 % of the
    rows are empty here, or say ``NA``, ``unknown`` or the like, is refused; each of fewer is a group of its own."""
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
    value of the label, optionally below or around train, val and test, and in folders around them all; ``npz``:
    MedMNIST's files; the other names: data sets in their published layouts."""
    images: Location | None = None
    """Folder or zip archive of images, for ``csv`` and ``image_folder``; the folder of a published data set."""
    table: Location | None = None
    """Table with a header, for ``csv``: in UTF-8, UTF-16 or Windows-1252, parted by commas, semicolons, tabs or
    ``|``."""
    npz: Location | None = None
    """MedMNIST-style ``.npz``, for ``npz``."""
    columns: Columns = Columns()
    """Columns of the table; used by ``csv``."""
    classes: dict[Name, tuple[Name, ...]] = Field(default={})
    """The site's values that mean a class of the experiment: ``{"melanoma": ["mel", "MM"]}``. They stand in the label
    column, name the sub-folders, or are numbers of labels in an ``npz``. A class that is not listed is meant by its own
    name; in an ``npz`` by its place in the experiment's ``data.classes``, counted from 0. Where ``columns.label`` is
    null every class must be listed, as no job names a column. An empty list says that no value means the class."""
    leave_out: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """The site's values whose images are left out and counted; for ``multilabel`` the values are, and the images
    stay. For ``image_folder`` also names of folders at any depth, such as ``masks`` below each class."""
    no_finding: Name | None = None
    """The site's value for images of no class, for ``multilabel``. Where it is set, an empty cell is an error; else an
    empty cell says the same."""
    uncertain: Literal["ignore", "zeros", "ones"] | None = None
    """What becomes of -1 where ``columns.label`` is null, after Irvin et al. 2019, arXiv:1901.07031: ``ignore`` masks
    the class in the image's training loss, and leaves the image out of validation and test; ``zeros`` and ``ones``
    take it for 0 or 1. null refuses -1."""
    group_pattern: GroupPattern | None = None
    """Regular expression (Python's ``re``) that finds an image's patient in its path inside the folder or zip archive,
    as its group ``(?P<group>…)``: ``^[^/]+/(?P<group>[^/]+)/`` takes the folder below the class. For ``image_folder``,
    and for ``csv`` without ``columns.group``; it must be found in every path."""
    frames: Frames = None
    """What is the image in a file of several frames or pages (DICOM, TIFF, GIF …): its number, counted from 0, or
    ``all`` if each frame is an image of its own, with the label of its file. They are named ``<file>#<frame>`` and stay
    in one split; where no group is known, DICOM's patient ID is the group. Null refuses such files."""
    pooled: bool = False
    """Whether simulated sites share these images, so that the experiment's ``partition`` deals them out. A site of its
    own uses all of its images as they are, and refuses a job that would deal them out, take a part of them or change
    how they look."""

    @model_validator(mode="after")
    def _fields_of_one_layout(self) -> Self:
        if self.columns.label is None and self.no_finding is not None:
            raise ValueError("'no_finding' is a value of the label column, but 'columns.label' is null")
        if self.columns.label is not None and self.uncertain is not None:
            raise ValueError(
                "'uncertain' is about tables with a column for each finding, and needs 'columns.label' to be null"
            )
        return self

    def located(self, place: Callable[[str], str]) -> Self:
        """With `place` of each path instead of the path."""
        paths = {field: getattr(self, field) for field in LOCATIONS}
        return self.model_copy(update={field: path and place(path) for field, path in paths.items()})

    def meaning(self) -> dict[str, JsonValue]:
        """All but the paths: with an experiment it decides what is counted as which class."""
        return self.model_dump(mode="json", exclude=set(LOCATIONS))
