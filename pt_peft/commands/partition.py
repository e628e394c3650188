"""Prints and draws how many images of each class every simulated site has, without decoding any image.

Example:
    pt-peft partition lora --sites 3 --out sites.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pt_peft.data.items import SPLITS, SplitCounts, SplitName, split_counts
from pt_peft.errors import UserError

if TYPE_CHECKING:
    from pt_peft.experiment.experiment import Experiment
    from pt_peft.experiment.sections import Partition
    from pt_peft.experiment.site import Site

Counts = Mapping[str, Mapping[SplitName, SplitCounts]]
"""The images of each site's splits, by the site's name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiment",
        help="a job folder, an experiment.json, a method's name for its demo, 'ham10000' or 'medmnist:FLAG'",
    )
    parser.add_argument(
        "--site-file", type=Path, help="site.json that all simulated sites share (default: the preset's own)"
    )
    parser.add_argument(
        "--sites", nargs="+", help="names of the sites, or their number (default: the experiment's federation.sites)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="replace a field of the experiment, such as partition.kind=iid; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, help="picture to draw, .svg, .png or .pdf: each site's training images as stacked bars"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints the counts. Raises UserError if the partition cannot be made."""
    from pt_peft.commands.partition_picture import draw
    from pt_peft.experiment.site import Site
    from pt_peft.presets import open_experiment, override

    experiment, site = open_experiment(options.experiment)
    if options.site_file:
        site = Site.read(options.site_file)
    experiment = override(experiment, options.set)
    names = site_names(options.sites, experiment.federation.sites)
    found = counts(experiment, site, names)
    if options.out:
        draw(found, experiment.data.classes, describe(experiment.partition), options.out)
    print(json.dumps(found, indent=1) if options.json else table(found))


def site_names(given: Sequence[str] | None, of_experiment: Sequence[str]) -> list[str]:
    """The names of the simulated sites.

    Args:
        given: the values of ``--sites``: names, or one number N for ``site-1`` to ``site-N``.
        of_experiment: the names to take if none are given.

    Raises:
        UserError: if there are no names.
    """
    if given and len(given) == 1 and given[0].isascii() and given[0].isdigit():
        if not int(given[0]):
            raise UserError("--sites is 0; at least 1 would be right.")
        return [f"site-{index}" for index in range(1, int(given[0]) + 1)]
    names = list(given or of_experiment)
    if not names:
        raise UserError("--sites: the experiment names no sites, so their names or their number must be given.")
    return names


def counts(experiment: Experiment, site: Site, names: Sequence[str]) -> Counts:
    """Counts the images of the sites `names`. Raises UserError if the partition cannot be made."""
    from pt_peft.data.sources import site_images

    found: dict[str, dict[SplitName, SplitCounts]] = {}
    for name in names:
        images = site_images(experiment, site, name, names)
        found[name] = {split: split_counts(images.items(split), experiment.data.classes) for split in SPLITS}
    return found


def table(found: Counts) -> str:
    """Training images of each site and class, and the size of every split, as aligned lines."""
    classes = list(next(iter(found.values()))["train"]["classes"])
    header = ["", *classes, "train", "val", "test"]
    numbers = [
        [*(site["train"]["classes"][label] for label in classes), *(split["images"] for split in site.values())]
        for site in found.values()
    ]
    numbers.append([sum(column) for column in zip(*numbers, strict=True)])
    rows = [header] + [
        [name, *(str(number) for number in row)] for name, row in zip([*found, "all"], numbers, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def describe(partition: Partition) -> str:
    """The title of the picture: the kind of partition and its options."""
    options = {
        "dirichlet": f", alpha {partition.alpha:g}",
        "dirichlet_by_site": f", alpha {partition.alpha:g}",
        "quantity": f", exponent {partition.exponent:g}",
        "shards": f", {partition.classes_per_site} classes a site",
    }
    mixed = f", {partition.iid_share:.0%} dealt equally" if partition.iid_share else ""
    return f"{partition.kind}{options.get(partition.kind, '')}{mixed}"
