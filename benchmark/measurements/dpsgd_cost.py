"""Measures the cost of DP-SGD: seconds of a training step of the demo with and without it, alternating in one process.

python -m benchmark.measurements.dpsgd_cost [--method lora_vpt] [--repeats 5] [--json]
"""

import argparse
import json
import statistics
import sys
import time

import torch

from benchmark.oracle.reference import load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.data.site_data import ImageSplit
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.privacy import Privacy, SamplePrivacy
from pt_peft.experiment.site import Site
from pt_peft.presets import demo


def seconds_of_steps(experiment: Experiment, site: Site, repeats: int) -> dict[str, float]:
    """Measures the median seconds of a step on one thread: ``plain``, and ``private`` by DP-SGD.

    DP-SGD draws its batches by chance; they have as many images as the plain ones on average.
    """
    sample = SamplePrivacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-5)
    private = experiment.model_copy(update={"privacy": Privacy(sample=sample)})
    trainers = {"plain": make_trainer(experiment, site), "private": make_trainer(private, site)}
    train = load_sites(experiment, site, ["site-1"])["site-1"].train
    batch = experiment.training.batch_size
    split = ImageSplit(train.images[: 4 * batch], train.labels[: 4 * batch])
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for repeat in range(repeats + 1):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.train("site-1", split, trainer.initial, 0)
            if repeat:  # the first is a warm-up
                taken[name].append((time.perf_counter() - started) / (4 * experiment.training.local_epochs))
    return {name: statistics.median(values) for name, values in taken.items()}


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.dpsgd_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", default="lora_vpt", help="method whose demo is trained (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a sentence")
    options = parser.parse_args(arguments)
    experiment, site = demo(options.method)
    found = seconds_of_steps(experiment, site, options.repeats)
    found["ratio"] = found["private"] / found["plain"]
    if options.json:
        settings = {"torch_threads": torch.get_num_threads(), "batch_size": experiment.training.batch_size}
        print(json.dumps({**found, **settings}))
    else:
        print(f"plain {found['plain']:.3f} s a step, private {found['private']:.3f} s, {found['ratio']:.2f} times")


if __name__ == "__main__":
    sys.exit(main())
