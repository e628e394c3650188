"""Reads a site's images and reports what is wrong with them and what a round will cost the site.

Ends with exit code 1 if there are errors, for which the site cannot take part; warnings alone do not.

Example:
    pt-peft check-site site.json my_job --name hospital-1
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pt_peft.errors import UserError, one_line, unlike_expected

if TYPE_CHECKING:
    from pt_peft.experiment.admission import JobFiles
    from pt_peft.site_check.report import Looks, Report, RoundCost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("site", type=Path, help="the site's site.json")
    parser.add_argument(
        "job",
        type=Path,
        nargs="?",
        help="job folder or experiment.json that the site is to join (default: experiment.json beside site.json)",
    )
    parser.add_argument(
        "--name",
        help="name of the site in the federation, on which some partitions depend "
        "(default: the first of the experiment's federation.sites, or site-1)",
    )
    parser.add_argument("--no-timing", action="store_true", help="read no weights, and measure no time and memory")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Checks the site and prints the report. Raises UserError if there are errors; warnings do not stop it."""
    from pydantic import TypeAdapter, ValidationError

    from pt_peft.experiment.experiment import Experiment
    from pt_peft.experiment.sections import SiteName
    from pt_peft.experiment.site import Site

    try:
        TypeAdapter[str | None](SiteName | None).validate_python(options.name)
    except ValidationError:
        raise UserError(f"--name is {options.name!r}; letters, digits, '_' and '-' would be right.") from None
    site = Site.read(options.site)
    path = find_experiment(options.job, options.site)
    path, job = job_files(path, options.name)
    experiment = Experiment.read(path)
    names = list(experiment.federation.sites) or [options.name or "site-1"]
    name = options.name or names[0]
    if name not in names:
        raise UserError(f"--name is {name!r}, but the experiment's federation.sites are {', '.join(names)}.")
    site = site.at(name, {*names, *site.sites})

    from pt_peft.experiment.limits import BETTER_SITES
    from pt_peft.site_check.check import check_site
    from pt_peft.site_check.findings import refuses

    local = options.site.parent
    findings, report = check_site(experiment, site, name, names, not options.no_timing, job, local)
    if (local.parent / "startup").is_dir() and (site.limits.min_sites or 0) < BETTER_SITES:
        findings.warning(
            "few sites",
            f"'min_sites' in the site's limits is {site.limits.min_sites or 'off'}, and kits of three and more sites "
            f"come with {BETTER_SITES}: of two sites each can tell the other's update from the mean.",
        )
        report["warnings"] = [asdict(one) for one in findings.of("warning")]
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(map(one_line, [*table(report), *findings.lines()])))
    errors = findings.of("error")
    refused = f"this site refuses the job '{experiment.name}'" if any(map(refuses, errors)) else ""
    if count := sum(one.count for one in errors if not refuses(one)):
        mend = f"{options.site}: {count} error(s) must be mended before this site can join '{experiment.name}'"
        raise UserError(f"{mend}; and {refused}." if refused else f"{mend}.")
    if refused:
        raise UserError(f"{options.job or path}: {refused}.")


def job_files(path: Path, name: str | None) -> tuple[Path, JobFiles | None]:
    """What lies around an experiment.json in a job folder.

    Args:
        path: the experiment.json that was found.
        name: the site's name in the federation, by which it may get another app.

    Returns:
        The site's experiment.json, and the files of the job; None if there are none.

    Raises:
        UserError: if the job's metadata are not as FLARE writes them, or nothing in the job goes to the site.
    """
    from pt_peft.experiment.admission import JobFiles
    from pt_peft.experiment.deployment import app_of, count_apps, sites_of
    from pt_peft.schema import read_json

    app = path.resolve().parent.parent
    if path.resolve().parent.name != "config":
        return path, None
    meta = app.parent / "meta.json"
    if not meta.is_file():
        return path, JobFiles(app)
    content: Any = read_json(meta)
    try:
        own = app_of(content, name) if name else app.name
        if own is None:
            raise UserError(f"{meta}: field 'deploy_map' gives nothing to {name!r}.")
        app = app.parent / own
        return app / "config" / path.name, JobFiles(app, sites_of(content, own), count_apps(content))
    except (AttributeError, TypeError, LookupError) as error:
        raise UserError(f"{meta}: is not as FLARE writes it ({unlike_expected(error)}).") from None


def find_experiment(job: Path | None, site: Path) -> Path:
    """Finds the experiment.json of `job`, or the one beside site.json.

    Args:
        job: a job folder or an experiment.json.
        site: the site's site.json.

    Raises:
        UserError: if there is none.
    """
    beside = site.parent / "experiment.json"
    places = [beside] if job is None else [job / "app" / "config" / "experiment.json", job / "experiment.json", job]
    for place in places:
        if place.is_file():
            return place
    if job is None:
        raise UserError(
            f"{beside}: does not exist. Classes and backbone are the experiment's: name the job folder or "
            f"experiment.json, as in 'check-site {site} jobs/lora_vpt'."
        )
    raise UserError(f"{job}: is neither an experiment.json nor a job folder.")


def table(report: Report) -> list[str]:
    """The report as lines of text."""
    lines = [f"site {report['site']}, experiment {report['experiment']}"]
    if images := report["images"]:
        classes = list(images["train"]["classes"])
        widths = [max(len(name), 6) for name in ("images", *classes)]
        rows = [("images", *classes)]
        rows += [(f"{one['images']}", *(f"{count}" for count in one["classes"].values())) for one in images.values()]
        for title, row in zip(("", *images), rows, strict=True):
            lines.append(f"{title:<8}" + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    if values := report["values"]:
        lines += _values_lines(values)
    if looks := report["looks"]:
        lines += _looks_lines(looks)
    if cache := report["cache"]:
        free, limit = cache["disk_free"] / 1e9, cache["limit"] / 1e9
        lines.append(
            f"cache   {cache['bytes'] / 1e9:.2f} GB in {cache['folder']}, {free:.1f} GB free, limit {limit:g} GB"
        )
    if spent := report["privacy"]:
        lines.append(
            f"privacy epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for {spent['rounds']} round(s) and "
            f"{spent['releases']} release(s) of statistics, in addition to what earlier jobs have spent"
        )
    if cost := report["round"]:
        lines += _cost_lines(cost)
    return lines


def _cost_lines(cost: RoundCost) -> list[str]:
    def took(seconds: float | None) -> str:
        return "" if seconds is None else f", about {seconds:,.0f} s"

    machine = ""
    if cost["process_memory"] is not None:
        machine = f" on {cost['device']} ({cost['threads']} threads), {cost['process_memory'] / 1e9:.1f} GB of memory"
    received = f"{cost['bytes_in'] / 1e3:,.1f} kB in"
    if cost["steps"]:
        sent = f"{cost['bytes_out'] / 1e3:,.1f} kB out"
        lines = [f"round   {received}, {sent}{took(cost['seconds'])} for {cost['steps']} steps{machine}"]
    else:
        lines = [f"rounds  none; {received} to evaluate the model{machine}"]
    if cost["statistics_out"]:
        lines.append(
            f"statistics {cost['statistics_in'] / 1e3:,.1f} kB in, {cost['statistics_out'] / 1e3:,.1f} kB out"
            f"{took(cost['statistics_seconds'])} in all, for the classifier"
        )
    return lines


def _values_lines(values: dict[str, dict[str, int]]) -> list[str]:
    """Which of the site's values mean which class."""
    width = max(map(len, values))
    return [
        f"{'labels' if index == 0 else '':<8}{name:<{width}}  "
        + (", ".join(f"{value!r} {count}" for value, count in found.items()) or "none")
        for index, (name, found) in enumerate(values.items())
    ]


def _looks_lines(looks: Looks) -> list[str]:
    from pt_peft.site_check.report import FITTED

    sides = {"width": looks["width"], "height": looks["height"]}
    lines = [
        f"{name:<8}{side['smallest']} to {side['largest']} pixels, median {side['median']}"
        for name, side in sides.items()
    ]
    fit = looks["fit"]
    shares = f"{fit['mean']:.1%} {FITTED[fit['fit']]} on average, {fit['largest']:.1%} at most ('{fit['file']}')"
    lines.append(f"fit     {fit['fit']}: {shares if fit['not_square'] else 'every image is square'}")
    lines.append("modes   " + ", ".join(f"{mode} {count}" for mode, count in looks["modes"].items()))
    low, high = looks["stored_range"]
    mean, std = (
        ", ".join(f"{value:z.2f}" for value in values) for values in (looks["normalised_mean"], looks["normalised_std"])
    )
    lines.append(f"values  {low:g} to {high:g} as stored; as the backbone gets them mean ({mean}), std ({std})")
    return lines
