"""Which images a site has and how to read them, before any pixel is decoded."""

from collections.abc import Sequence
from dataclasses import replace

from pt_peft.data import npz
from pt_peft.data.frames import each_frame
from pt_peft.data.groups import grouped
from pt_peft.data.image_folder import read_image_folder
from pt_peft.data.items import Item
from pt_peft.data.names import name_order
from pt_peft.data.partition import partition
from pt_peft.data.partition.even import report_other_sites
from pt_peft.data.pixels import FileImages, LesionImages, NpzImages, ShiftedImages, SiteImages
from pt_peft.data.problems import Report, not_taken, stop
from pt_peft.data.published import read_published
from pt_peft.data.splits import assign_splits, at_most
from pt_peft.data.table import read_table
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.rules import SITE_RULES, AtSite, broken
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

_READS = {"csv": ("images", "table", "columns"), "npz": ("npz",)}
"""What a source reads of ``images``, ``table``, ``npz`` and ``columns``; others read ``images`` alone."""


def site_images(
    experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report = stop
) -> SiteImages:
    """The images of one site.

    Args:
        experiment: the classes, and how the images of simulated sites are partitioned.
        site: what its images are and where they lie.
        name: the site's name.
        names: all sites of the run.
        report: takes images that are wrongly listed.

    Raises:
        UserError: if the site's data is missing or malformed, or leaves the site without training images.
    """
    images = _unshifted(experiment, site.at(name, names), name, names, report)
    if experiment.partition.feature_shift:
        images = ShiftedImages(images, experiment.partition.feature_shift, experiment.seed, name)
    if not images.items("train"):
        raise UserError(
            f"site {name!r} has no training images: the 'train' split of its data (partition.kind"
            f" '{experiment.partition.kind}') is empty."
        )
    return images


def _unshifted(experiment: Experiment, site: Site, name: str, names: Sequence[str], report: Report) -> SiteImages:
    data = experiment.data
    if data.source == "lesions":
        return LesionImages(data, experiment.seed, name)
    items = listed_items(experiment, site, report)
    if site.data.frames == "all" and site.data.source != "npz":
        items = each_frame(items, site.existing("data.images"))
    if site.data.source != "npz":  # whose splits are the published ones
        items = (
            assign_splits(items, experiment.seed, data.fold) if site.data.pooled else _own_splits(items, data.classes)
        )
    if experiment.partition.kind == "natural":
        report_other_sites(items, {name, *names}, report)
    items = partition(experiment.partition, items, name=name, names=names, seed=experiment.seed)
    items = _evaluated_as_known(items, name, report)
    items = at_most(data.max_images_per_site, items, experiment.seed, name)
    if site.data.source == "npz":
        return NpzImages(items, site.existing("data.npz"))
    return FileImages(items, site.existing("data.images"), site.data.frames)


def _own_splits(items: Sequence[Item], classes: Sequence[str]) -> list[Item]:
    """`items` with their splits, in which no job has a part, neither by its seed nor by the order of its classes.

    What two jobs count or add up then differs by no image that a lead has chosen, and no image that one of them trains
    on is tested by another.
    """
    rank = {label: place for place, label in enumerate(name_order(classes))}
    ranked = [replace(item, labels=tuple(sorted(rank[label] for label in item.labels))) for item in items]
    return [replace(item, split=one.split) for item, one in zip(items, assign_splits(ranked, 0), strict=True)]


def _evaluated_as_known(items: Sequence[Item], name: str, report: Report) -> list[Item]:
    """`items` without validation and test images of which a label is not known."""
    known = [item for item in items if item.split == "train" or not item.not_known]
    if dropped := [f"'{item.file}'" for item in items if item.split != "train" and item.not_known]:
        cause = "a label is uncertain, and metrics need all labels"
        evaluated = sum(item.split != "train" for item in items)
        report(
            "uncertain label",
            f"site {name!r}: {not_taken(dropped, evaluated, 'validation and test images', cause)}.",
            "warning",
        )
    return known


def listed_items(experiment: Experiment, site: Site, report: Report = stop) -> list[Item]:
    """All images that the site's data lists, before splits are drawn and sites get their shares; not for ``lesions``.

    Args:
        experiment: the classes.
        site: what its images are and where they lie.
        report: takes images that are wrongly listed.

    Raises:
        UserError: if the site's data is missing or malformed, or the experiment does not go with it.
    """
    own = site.data
    at_site = AtSite(experiment, own)
    if rule := broken(SITE_RULES, at_site):
        raise UserError(f"site.json: {rule.message(at_site)}.", rule.field)
    knows_groups = own.source not in ("csv", "image_folder") or (own.source == "csv" and own.columns.group is not None)
    if own.group_pattern and knows_groups:
        raise UserError(
            "site.json: field 'data.group_pattern' must be null where the source says the groups: it finds them in the "
            "paths of 'image_folder', and of 'csv' without 'data.columns.group'.",
            "data.group_pattern",
        )
    _report_not_read(own, report)
    items = _read(experiment.data, site, report)
    for item in items:
        if any("\ud800" <= letter <= "\udfff" for letter in item.file):
            raise UserError(f"{site.existing('data.images')}: file {item.file!a} is not named in UTF-8; rename it.")
    return grouped(items, own.group_pattern, site.existing("data.images"), report) if own.group_pattern else items


def _report_not_read(own: SiteData, report: Report) -> None:
    """Warns of fields that are set and that the source does not read: who sets a table's groups expects them kept."""
    default = SiteData()
    given = [name for name in ("images", "table", "npz", "columns") if getattr(own, name) != getattr(default, name)]
    if ignored := [f"'data.{name}'" for name in given if name not in _READS.get(own.source, ("images",))]:
        message = f"site.json: data.source '{own.source}' does not read {' and '.join(ignored)}."
        report("fields that are not read", message, "warning")


def _read(data: Data, site: Site, report: Report) -> list[Item]:
    """The images by the reader of the site's source."""
    own = site.data
    if own.source == "npz":
        return npz.read_npz_items(site.existing("data.npz"), data, own, report)
    if own.source == "csv":
        return read_table(site, data, report)
    images = site.existing("data.images")
    if own.source == "image_folder":
        return read_image_folder(images, data, own, report)
    return read_published(images, data, own, report)
