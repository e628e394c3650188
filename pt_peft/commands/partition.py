"""Prints and draws how many images of each class every simulated site has, without decoding any."""

import argparse
import json
from collections import Counter
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.files import check_place

COLOURS = "tab20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "experiment", help="an experiment.json, a method's name for its demo, 'ham10000' or 'medmnist:FLAG'"
    )
    parser.add_argument(
        "--site-file", type=Path, help="the site.json that all simulated sites share; a preset has its own"
    )
    parser.add_argument(
        "--sites", nargs="+", help="names of the sites, or their number; the experiment's own if it has some"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field of the experiment"
    )
    parser.add_argument("--out", type=Path, help="picture to draw, .svg, .png or .pdf: stacked bars of training images")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(options: argparse.Namespace) -> None:
    """Raises UserError if the partition cannot be made."""
    from pt_peft.experiment.experiment import Experiment
    from pt_peft.experiment.site import Site
    from pt_peft.presets import override, preset

    if Path(options.experiment).is_file():
        experiment, site = Experiment.read(Path(options.experiment)), Site()
    else:
        experiment, site = preset(options.experiment)
    if options.site_file:
        site = Site.read(options.site_file)
    experiment = override(experiment, options.set)
    names = site_names(options.sites, experiment.federation.sites)
    found = counts(experiment, site, names)
    if options.out:
        draw(found, experiment.data.classes, describe(experiment.partition), options.out)
    print(json.dumps(found, indent=1) if options.json else table(found))


def site_names(given: list[str] | None, of_experiment: tuple[str, ...]) -> list[str]:
    """Names as given, ``site-1`` … for a number, or those of the experiment. Raises UserError if there are none."""
    if given and len(given) == 1 and given[0].isascii() and given[0].isdigit():
        if not int(given[0]):
            raise UserError("--sites is 0; at least 1 would be right.")
        return [f"site-{index}" for index in range(1, int(given[0]) + 1)]
    names = given or list(of_experiment)
    if not names:
        raise UserError("--sites: the experiment names no sites, so their names or their number must be given.")
    return names


def counts(experiment, site, names: list[str]) -> dict[str, dict[str, dict]]:
    """By site and split: ``images``, and how many of each of the ``classes`` by name. Raises UserError."""
    from pt_peft.data.items import SPLITS
    from pt_peft.data.sources import site_images

    classes = experiment.data.classes
    found = {}
    for name in names:
        images = site_images(experiment, site, name, names)
        found[name] = {}
        for split in SPLITS:
            items = images.items(split)
            labels = Counter(label for item in items for label in item.labels)
            by_name = {label: labels[index] for index, label in enumerate(classes)}
            found[name][split] = {"images": len(items), "classes": by_name}
    return found


def table(found: dict) -> str:
    """Training images by site and class, and the sums of every split, aligned."""
    classes = list(next(iter(found.values()))["train"]["classes"])
    rows = [["", *classes, "train", "val", "test"]]
    for name, splits in found.items():
        sums = [splits[split]["images"] for split in ("train", "val", "test")]
        rows.append([name, *(splits["train"]["classes"][label] for label in classes), *sums])
    rows.append(["all", *(sum(row[column] for row in rows[1:]) for column in range(1, len(rows[0])))])
    widths = [max(len(f"{row[column]}") for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *numbers = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([f"{first.strip():<{widths[0]}}", *numbers]))
    return "\n".join(lines)


def describe(partition) -> str:
    """One line that says how the picture came about."""
    options = {"dirichlet": f", alpha {partition.alpha:g}", "quantity": f", exponent {partition.exponent:g}"}
    options["shards"] = f", {partition.classes_per_site} classes a site"
    mixed = f", {partition.iid_share:.0%} dealt equally" if partition.iid_share else ""
    return f"{partition.kind}{options.get(partition.kind, '')}{mixed}"


def draw(found: dict, classes: tuple[str, ...], title: str, path: Path) -> None:
    """Stacked bars: a bar a site, a colour a class, training images. Raises UserError for a format that cannot be written."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError(
            "--out: the package 'matplotlib' is not installed; pip install 'pt-peft[plots]' has it."
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    if path.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--out: '{path.name}' ends in '{path.suffix}'; .svg, .png or .pdf would be right.")
    check_place(path)
    names = list(found)
    with pyplot.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.3 * len(names)), layout="constrained")
        left = [0] * len(names)
        for index, label in enumerate(classes):
            widths = [found[name]["train"]["classes"][label] for name in names]
            axes.barh(names, widths, left=left, label=label, color=pyplot.get_cmap(COLOURS)(index % 20))
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("training images")
        axes.set_title(title)
        if len(classes) <= 20:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        figure.savefig(path)
        pyplot.close(figure)
