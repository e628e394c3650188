"""All checks of a site, in one report."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path

from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.probe import probe_all
from pt_peft.data.sources import site_images
from pt_peft.encryption.contexts import SITE_FILE, import_tenseal, read_file, site_context
from pt_peft.errors import BackboneMismatch, OutsideLimits, UserError
from pt_peft.experiment.admission import JobFiles, component_refusals, distinct, refusals
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import stages
from pt_peft.model.backbone import pinned_weights
from pt_peft.model.method import method_names
from pt_peft.site_check.cost import cache_cost, round_cost
from pt_peft.site_check.findings import JOB, LIMITS, Findings
from pt_peft.site_check.images import Probed, check_classes, check_copies, check_looks, check_patients, values_by_class
from pt_peft.site_check.privacy import privacy_cost
from pt_peft.site_check.report import Report, empty_report
from pt_peft.training.footprint import model_refusals

PUBLISHED_SPLITS = ("npz", "fed_isic2019")
"""Sources whose splits the site cannot change."""


def check_site(
    experiment: Experiment,
    site: Site,
    name: str,
    names: Sequence[str],
    timing: bool = True,
    job: JobFiles | None = None,
    local: Path | None = None,
) -> tuple[Findings, Report]:
    """Reads every image of a site.

    Args:
        experiment: the experiment that the site is to join.
        site: the site's settings.
        name: the site's name.
        names: all sites of the run.
        timing: whether to read the weights and time a few steps of the model.
        job: the files of the job; None for an experiment alone.
        local: the folder of `site.json`, which in a kit has what jobs may have built.

    Returns:
        The problems, and the whole report.
    """
    findings = Findings()
    report = empty_report(name, experiment.name)
    weights = (lambda: pinned_weights(experiment.backbone, site)) if timing else None
    _check_method_names(site.limits, findings)
    check_job(experiment, site.limits, weights, job, local, findings)
    fits = not findings.of("error")
    if experiment.encryption:
        _check_key(site, findings)
    items = _items(experiment, site, name, names, findings)
    if items:
        report["images"] = check_classes(experiment, items, findings)
        if experiment.data.source == "site":  # else there are no files
            report["values"] = values_by_class(experiment.data, site.data, items)
            probed = _probed(experiment, site, items, findings)
            if not any(item.split == "train" for item, _ in probed):
                findings.error("no training images", "no training image can be read.")
            check_copies(probed, site.data.source in PUBLISHED_SPLITS, findings)
            check_patients(probed, findings)
            report["looks"] = check_looks(experiment, probed, findings) if probed else None
        report["cache"] = cache_cost(experiment, site, len(items), findings)
    sizes: dict[SplitName, int] = {split: sum(item.split == split for item in items) for split in SPLITS}
    _check_sizes(experiment, site, sizes, findings)
    _check_small_classes(experiment, site, items, findings)
    _check_open_limits(experiment, site, weights, job, sizes["train"], findings)
    report["privacy"] = privacy_cost(experiment, site, sizes["train"], findings)
    if fits and sizes["train"]:
        with _reported(findings):
            report["round"] = round_cost(experiment, site, name, sizes["train"], sizes["val"], timing)
    report["errors"] = [asdict(one) for one in findings.of("error")]
    report["warnings"] = [asdict(one) for one in findings.of("warning")]
    return findings, report


def _check_method_names(limits: Limits, findings: Findings) -> None:
    """Warns of allowed methods that do not exist: a misspelt one allows nothing."""
    known = method_names()
    for name in limits.methods or ():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f"did you mean '{close[0]}'?" if close else f"a name of {', '.join(known)} would be right."
            findings.warning(
                "unknown method", f"field 'limits.methods' of site.json names '{name}', no method; {meant}"
            )


def check_job(
    experiment: Experiment,
    limits: Limits,
    weights: Callable[[], Path] | None,
    job: JobFiles | None,
    local: Path | None,
    findings: Findings,
) -> None:
    """Reports all for which a site refuses a job by its files, by what it asks, by whom it is for, and by its model."""
    job = job or JobFiles()
    found = refusals(experiment, limits, job.app, job.sites, job.apps)
    if job.app:
        found = [*component_refusals(job.app, local), *found]
    for message in distinct(one for one in found if not isinstance(one, OutsideLimits)):
        findings.error(JOB, message)
    with _reported(findings):
        if limits != Limits.open():
            found += model_refusals(experiment, limits, weights, trains=True)
    for message in distinct(one for one in found if isinstance(one, OutsideLimits)):
        findings.error(LIMITS, message)


@contextmanager
def _reported(findings: Findings) -> Generator[None]:
    """Makes a finding of what the block raises."""
    try:
        yield
    except OutsideLimits as error:
        findings.error(LIMITS, str(error))
    except BackboneMismatch as error:
        findings.error("other backbone", str(error))
    except UserError as error:
        findings.error("model", str(error))


def _check_sizes(experiment: Experiment, site: Site, sizes: Mapping[SplitName, int], findings: Findings) -> None:
    """Asks the site's limits about the number of its images."""
    if sizes["train"]:
        for refusal in site.limits.image_refusals(experiment, sizes["train"]):
            findings.error(LIMITS, str(refusal))
    for split in SPLITS[1:]:
        if 0 < sizes.get(split, 0) < (least := site.limits.min_evaluated_images or 0):
            findings.warning(
                "small split",
                f"'{split}' has {sizes[split]} image(s), fewer than the {least} of 'min_evaluated_images' in the "
                "site's limits: it will not be evaluated.",
            )


def _check_small_classes(experiment: Experiment, site: Site, items: Sequence[Item], findings: Findings) -> None:
    """Warns of classes that the site would leave out of its statistics."""
    least = site.limits.least_counted
    if not stages(experiment) or experiment.privacy.statistics:  # whose noise hides them, so that all are in it
        return
    counts = Counter(label for item in items if item.split == "train" for label in item.labels)
    for label, name in enumerate(experiment.data.classes):
        if 0 < counts[label] < least:
            findings.warning(
                "small class",
                f"class '{name}' has {counts[label]} training image(s), fewer than the {least} of "
                "'min_images_per_class' in the site's limits: the site leaves it out of its statistics.",
            )


def _check_open_limits(
    experiment: Experiment,
    site: Site,
    weights: Callable[[], Path] | None,
    job: JobFiles | None,
    train_images: int,
    findings: Findings,
) -> None:
    """Warns where a site has switched all limits off, and says for what the default ones would refuse the job."""
    if site.limits != Limits.open():
        return
    would = Findings()
    check_job(experiment, Limits(), weights, job and replace(job, app=None), None, would)
    _check_sizes(experiment, site.model_copy(update={"limits": Limits()}), {"train": train_images}, would)
    refused = [text for one in would.of("error") if one.kind == LIMITS for text in one.examples]
    findings.warning(
        "limits are off",
        "field 'limits' of site.json is null: all limits are off. The defaults would "
        + (f"refuse this job: {' '.join(refused)}" if refused else "allow this job."),
    )


def _check_key(site: Site, findings: Findings) -> None:
    """Checks that the site can encrypt, as far as site.json says; a kit's key is found only when the job starts."""
    try:
        import_tenseal()
        if site.encryption_contexts:
            path = Path(site.encryption_contexts) / SITE_FILE
            site_context(read_file(path), str(path))
    except UserError as error:
        findings.error("encryption", str(error))


def _items(experiment: Experiment, site: Site, name: str, names: Sequence[str], findings: Findings) -> list[Item]:
    """The site's images, without those that are wrongly listed."""
    try:
        images = site_images(experiment, site, name, names, findings.report)
    except UserError as error:
        findings.error("data", str(error))
        return []
    return [item for split in SPLITS for item in images.items(split)]


def _probed(experiment: Experiment, site: Site, items: Sequence[Item], findings: Findings) -> Probed:
    """The images that can be read. The others are warnings, or errors if they are too many."""
    probed: Probed = []
    unreadable: list[str] = []
    try:
        for item, found in probe_all(experiment, site, items):
            if isinstance(found, str):
                unreadable.append(f"'{item.file}' ({item.split}): {found}")
            else:
                probed.append((item, found))
    except UserError as error:
        findings.error("data", str(error))
    too_many = len(unreadable) > site.allowed_unreadable(len(items))
    for message in unreadable:
        (findings.error if too_many else findings.warning)("unreadable image", message)
    return probed
