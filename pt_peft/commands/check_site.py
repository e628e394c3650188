"""Reads a site's images and says what is wrong with them, and what a round will cost the site."""

import argparse
import json
from pathlib import Path

from pt_peft.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("site", type=Path, help="the site's site.json")
    parser.add_argument(
        "job",
        type=Path,
        nargs="?",
        help="job folder or experiment.json that the site is to join; experiment.json beside site.json",
    )
    parser.add_argument("--name", help="name of the site in the federation; matters to some partitions")
    parser.add_argument("--no-timing", action="store_true", help="leave out the model: no estimate of a round")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: argparse.Namespace) -> None:
    """Raises UserError if there are errors; warnings stop nothing."""
    from pydantic import TypeAdapter, ValidationError

    from pt_peft.experiment.experiment import Experiment
    from pt_peft.experiment.sections import SiteName
    from pt_peft.experiment.site import Site

    try:
        TypeAdapter(SiteName | None).validate_python(options.name)
    except ValidationError:
        raise UserError(f"--name is {options.name!r}; letters, digits, '_' and '-' would be right.") from None
    site = Site.read(options.site)
    experiment = Experiment.read(find_experiment(options.job, options.site))
    names = list(experiment.federation.sites) or [options.name or "site-1"]
    name = options.name or names[0]
    if name not in names:
        raise UserError(f"--name is {name!r}, but the experiment's federation.sites are {', '.join(names)}.")

    from pt_peft.site_check.check import check_site

    findings, report = check_site(experiment, site, name, names, not options.no_timing)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join([*table(report), *findings.lines()]))
    if findings.of("error"):
        count = sum(one.count for one in findings.of("error"))
        raise UserError(
            f"{options.site}: {count} error(s) must be mended before this site can join '{experiment.name}'."
        )


def find_experiment(job: Path | None, site: Path) -> Path:
    """The experiment.json of a job folder, or the file itself, or the one beside `site`. Raises UserError if there is none."""
    beside = site.parent / "experiment.json"
    places = [beside] if job is None else [job / "app" / "config" / "experiment.json", job / "experiment.json", job]
    for place in places:
        if place.is_file():
            return place
    if job is None:
        raise UserError(
            f"{beside}: does not exist. Classes and backbone are the experiment's: name the job folder or experiment.json, as in "
            f"'check-site {site} jobs/lora_vpt'."
        )
    raise UserError(f"{job}: is neither an experiment.json nor a job folder.")


def table(report: dict) -> list[str]:
    """The report as lines of text."""
    lines = [f"site {report['site']}, experiment {report['experiment']}"]
    if report["images"]:
        classes = list(report["images"]["train"]["classes"])
        widths = [max(len(name), 6) for name in ("images", *classes)]
        rows = [("images", *classes)]
        rows += [
            (f"{one['images']}", *(f"{count}" for count in one["classes"].values()))
            for one in report["images"].values()
        ]
        for title, row in zip(("", *report["images"]), rows, strict=True):
            lines.append(f"{title:<8}" + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    if looks := report["looks"]:
        for side in ("width", "height"):
            spread = looks[side]
            lines.append(f"{side:<8}{spread['smallest']} to {spread['largest']} pixels, median {spread['median']}")
        lines.append("modes   " + ", ".join(f"{mode} {count}" for mode, count in looks["modes"].items()))
        low, high = looks["stored_range"]
        mean, std = (
            ", ".join(f"{value:.2f}" for value in looks[name]) for name in ("normalised_mean", "normalised_std")
        )
        lines.append(f"values  {low:g} to {high:g} as stored; as the backbone gets them mean ({mean}), std ({std})")
    if cache := report["cache"]:
        free, limit = cache["disk_free"] / 1e9, cache["limit"] / 1e9
        lines.append(
            f"cache   {cache['bytes'] / 1e9:.2f} GB in {cache['folder']}, {free:.1f} GB free, limit {limit:g} GB"
        )
    if spent := report["privacy"]:
        lines.append(
            f"privacy epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for {spent['rounds']} round(s), and what earlier jobs "
            "have spent"
        )
    if cost := report["round"]:
        lines.append(
            f"round   {cost['bytes_in'] / 1e3:,.1f} kB in, {cost['bytes_out'] / 1e3:,.1f} kB out, about {cost['seconds']:,.0f} s "
            f"for {cost['steps']} steps on {cost['device']} ({cost['threads']} threads), "
            f"{cost['process_memory'] / 1e9:.1f} GB of memory"
        )
    return lines
