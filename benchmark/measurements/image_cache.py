"""Times the image cache: a site's cold start, its warm start, and a pass over its images with and without the cache.

Example:
    python -m benchmark image-cache ham10000 --site rosendahl --out image_cache.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmark.measurements.options import check_positive
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import check_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("experiment", help="preset with data of its own, such as 'ham10000'")
    parser.add_argument("--site", required=True, help="name of the site whose images are read")
    parser.add_argument(
        "--repeats", type=int, default=3, help="repeats of each measurement, alternating (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="result file to write")


def run(options: argparse.Namespace) -> None:
    """Measures and writes the result file. Raises UserError if the images cannot be read."""
    from benchmark.measurements.provenance import provenance
    from benchmark.measurements.results import finish
    from pt_peft.presets import preset

    check_positive(options, "repeats")
    check_place(options.out)
    origin = provenance()
    experiment, site = preset(options.experiment)
    names = list(experiment.federation.sites) or [options.site]
    runs = [measure(experiment, site, options.site, names) for _ in range(options.repeats)]
    count = runs[0][0]
    seconds = {name: [measured[name] for _, measured in runs] for name in runs[0][1]}
    medians = {name: median(values) for name, values in seconds.items()}
    result = {
        "provenance": origin,
        "experiment": experiment.model_dump(mode="json"),
        "site_data": site.data.meaning(),
        "site": options.site,
        "images": count,
        "seconds": seconds,
        "median_seconds": medians,
        "warm_over_cold": medians["warm"] / medians["cold"],
        "without_over_with": medians["pass without it"] / medians["pass from the cache"],
    }
    lines = [f"{count} images of {experiment.backbone.image_size} px, median of {options.repeats}"]
    lines += [f"{name:<20}{value:>9.3f} s" for name, value in medians.items()]
    finish(options, result, "\n".join(lines))


def measure(experiment: Experiment, site: Site, name: str, names: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Takes each measurement once. A pass reads the training images in batches, shuffled.

    Args:
        experiment: says which images there are, and their size.
        site: the site's settings; its cache is left as it is.
        name: of the site whose images are read.
        names: all sites of the experiment.

    Returns:
        The number of images of the site, and the seconds of each measurement by name.

    Raises:
        UserError: if the images cannot be read.
    """
    from pt_peft.data.site_data import batches, load_site_data
    from pt_peft.data.sources import site_images

    with tempfile.TemporaryDirectory() as folder:
        fresh = site.model_copy(update={"cache": folder})
        cold = _timed(lambda: load_site_data(experiment, fresh, name, names))
        warm = _timed(lambda: load_site_data(experiment, fresh, name, names))
        data = load_site_data(experiment, fresh, name, names)
        size = experiment.training.batch_size
        cached = _timed(lambda: sum(len(labels) for _, labels in batches(data.train, size, seed=0)))
        images = site_images(experiment, fresh, name, names)
        decoded = _timed(lambda: sum(1 for _ in images.decoded("train", experiment.preprocessing.decoding)))
        count = len(data.train) + len(data.val) + len(data.test)
    return count, {"cold": cold, "warm": warm, "pass from the cache": cached, "pass without it": decoded}


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
