"""Measures what adapters in the last k blocks give for the same processor time, on HAM10000's four real sites.

    python -m benchmark.measurements.last_blocks [--blocks 12 6 3 1] [--rounds 12] [--seeds 0] [--out FILE]

The greatest k sets the time: that of `--rounds` rounds of all sites. Fewer blocks get as many rounds as fit into it,
with what computing the features of the frozen blocks takes. Times are of the process, of training alone, in the plain
loop; the learning rate starts from the preset's, which was chosen for adapters in all blocks, and decays to zero in the
last round of each run. Nothing is chosen by any image: the final model of each run is evaluated. The command can be
stopped: given again, it goes on after the last finished run. `--images` makes a short run, which shows nothing but that
it works.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import begun, markdown_table, write_result
from benchmark.oracle.evaluation import predict
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.data.site_data import SiteData
from pt_peft.data.views import VIEWS
from pt_peft.environment import Machine, machine
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Method
from pt_peft.federation.local_round import LocalRound
from pt_peft.files import check_place
from pt_peft.model.method import components
from pt_peft.presets import preset
from pt_peft.training.trainer import LocalTrainer

OUT = Path("benchmark/results/last_blocks.json")
CACHE = Path("runs/last_blocks")
METRICS = ("balanced_accuracy", "accuracy", "auroc")


class Settings(TypedDict):
    """What all runs of a result file have in common."""

    method: str
    most_blocks: int
    """The greatest number of last blocks, which sets the time of all runs."""
    rounds: int
    """Its rounds."""
    images: int | None
    """Most training images of a site; None for all."""
    precision: str
    machine: Machine


class Timing(TypedDict):
    """What all sites take for a number of blocks, seconds of the process."""

    blocks: int
    features_s: float
    """Computing the features of the frozen blocks, once."""
    round_s: float
    """A round after that."""
    rounds: int
    """Rounds that fit into the time of all blocks."""


class Row(TypedDict):
    """The final model of one federation."""

    blocks: int
    seed: int
    commit: str
    """Of the code that made it."""
    rounds: int
    parameters: int
    """Exchanged each way in a round."""
    megabytes: float
    """10^6 bytes that a site has sent and received in all rounds, raw tensors."""
    minutes: float
    """Minutes of the process that the training of all sites took, with the features of the frozen blocks."""
    val: dict[str, float]
    """`METRICS` on all validation images together."""
    test: dict[str, float]
    """`METRICS` on all test images together."""


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    """Of the first run."""
    settings: Settings
    timings: list[Timing]
    rows: list[Row]


class _Clock:
    """An observer that adds up the process time of the sites' rounds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def starts(self, round_number: int, site: str, tensors: Tensors) -> None:
        self._started = time.process_time()

    def trained(self, round_number: int, site: str, result: LocalRound) -> None:
        self.seconds += time.process_time() - self._started


class _Measurement:
    """The runs of one result file."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._base, site = preset("ham10000")
        CACHE.mkdir(parents=True, exist_ok=True)
        self._site = site.model_copy(update={"cache": str(CACHE.resolve())})

    def _experiment(self, blocks: int, rounds: int, seed: int) -> Experiment:
        fields, settings = self._base.model_dump(mode="json"), self._settings
        parts = [part.name for part, _ in components(Method(name=settings["method"]))]
        own = fields["method"]["options"]
        options = {part: {**own.get(part, {}), "last_blocks": blocks} for part in parts}
        fields["method"] = {"name": settings["method"], "options": options}
        fields["training"] |= {"imbalance": "balanced_softmax", "precision": settings["precision"]}
        fields["federation"]["rounds"] = rounds
        fields["seed"] = seed
        if settings["images"]:
            fields["data"]["max_images_per_site"] = dict.fromkeys(("train", "val", "test"), settings["images"])
        return Experiment.model_validate_json(json.dumps(fields))

    def _open(self, experiment: Experiment) -> tuple[LocalTrainer, dict[str, SiteData]]:
        names = list(experiment.federation.sites)
        return make_trainer(experiment, self._site), load_sites(experiment, self._site, names)

    def timing(self, blocks: int, budget_s: float | None) -> Timing:
        """Times two rounds; `budget_s` None is for the most blocks, which set the time of the others."""
        rounds = self._settings["rounds"]
        features, second = self._timed(blocks, rounds if budget_s is None else VIEWS)
        if budget_s is not None:
            rounds = int((budget_s - features) / second)
            if features and rounds < VIEWS:  # a run with fewer rounds than views keeps no features
                features, second = self._timed(blocks, VIEWS - 1)
                rounds = min(int(budget_s / second), VIEWS - 1)
        return {"blocks": blocks, "features_s": features, "round_s": second, "rounds": max(1, rounds)}

    def _timed(self, blocks: int, rounds: int) -> tuple[float, float]:
        """Seconds of the features of the frozen blocks, in a run of so many rounds, and of a round after that."""
        trainer, sites = self._open(self._experiment(blocks, max(rounds, 2), 0))
        _forget_features()
        first, second = (_training_seconds(trainer, sites, number) for number in (0, 1))
        return (max(0.0, first - second) if _features() else 0.0), second

    def row(self, timing: Timing, seed: int, commit: str) -> Row:
        """Runs and evaluates one federation, by the code of `commit`."""
        trainer, sites = self._open(self._experiment(timing["blocks"], timing["rounds"], seed))
        _forget_features()  # the run computes them anew, and pays for it
        clock = _Clock()
        final = federate(trainer, sites, observer=clock)
        task, rounds = trainer.experiment.data.task, timing["rounds"]
        found = {
            split: predict(trainer, final.tensors, final.kept, sites, split).metrics(task)["pooled"]
            for split in ("val", "test")
        }
        nbytes = round_bytes(trainer.exchange, trainer.experiment.payload, 0)
        return {
            "blocks": timing["blocks"],
            "seed": seed,
            "commit": commit,
            "rounds": rounds,
            "parameters": sum(spec.size for spec in trainer.exchange.up(0).values()),
            "megabytes": rounds * (nbytes.up + nbytes.down) / 1e6,
            "minutes": clock.seconds / 60,
            "val": {name: found["val"][name] for name in METRICS},
            "test": {name: found["test"][name] for name in METRICS},
        }


def _features() -> list[Path]:
    """The features that the cache keeps."""
    return list(CACHE.glob("*/features.npy"))


def _forget_features() -> None:
    for kept in _features():
        shutil.rmtree(kept.parent)


def _training_seconds(trainer: LocalTrainer, sites: Mapping[str, SiteData], round_number: int) -> float:
    """Seconds of the process for a round of all sites."""
    started = time.process_time()
    for name, data in sites.items():
        trainer.train(name, data.train, trainer.initial, round_number)
    return time.process_time() - started


def measure(out: Path, settings: Settings, blocks: list[int], seeds: list[int]) -> Result:
    """Makes the runs that `out` lacks, and writes it after each.

    Args:
        out: the result file.
        settings: of all runs.
        blocks: numbers of last blocks; the greatest sets the time.
        seeds: of the runs of each.

    Raises:
        UserError: if `out` is of other settings, or the data are missing.
    """
    origin = provenance()
    empty = {"provenance": origin, "settings": settings, "timings": [], "rows": []}
    result, measurement = cast(Result, begun(out, settings) or empty), _Measurement(settings)
    budget: float | None = None
    for number in sorted(blocks, reverse=True):
        timing = next((one for one in result["timings"] if one["blocks"] == number), None)
        if timing is None:
            timing = measurement.timing(number, budget)
            result["timings"].append(timing)
            write_result(out, result)
        if budget is None:
            budget = timing["features_s"] + timing["rounds"] * timing["round_s"]
        for seed in seeds:
            if not any((row["blocks"], row["seed"]) == (number, seed) for row in result["rows"]):
                result["rows"].append(measurement.row(timing, seed, origin["commit"]))
                write_result(out, result)
                print(table(result["rows"][-1:]), file=sys.stderr, flush=True)
    return result


def table(rows: Sequence[Row]) -> str:
    """The runs as a Markdown table, with the metrics of the test images."""
    header = ["blocks", "seed", "rounds", "parameters", "MB", "minutes", *(name.replace("_", " ") for name in METRICS)]
    lines: list[list[str]] = []
    for row in rows:
        numbers = (str(row["blocks"]), str(row["seed"]), str(row["rounds"]), f"{row['parameters']:,}")
        accuracies = (f"{row['test'][name]:.3f}" for name in METRICS)
        lines.append([*numbers, f"{row['megabytes']:.2f}", f"{row['minutes']:.2f}", *accuracies])
    return markdown_table(header, lines, texts=0)


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.last_blocks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", default="lora_vpt", help="method that takes last_blocks (default: %(default)s)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[12, 6, 3, 1], help="numbers of last blocks")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of the most blocks (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the runs (default: 0)")
    parser.add_argument("--images", type=int, help="most images of a site in each split (default: all)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write or go on with")
    options = parser.parse_args(arguments)
    check_positive(options, "rounds", *(["images"] if options.images is not None else []))
    check_place(options.out)
    settings: Settings = {
        "method": options.method,
        "most_blocks": max(options.blocks),
        "rounds": options.rounds,
        "images": options.images,
        "precision": options.precision,
        "machine": machine(),
    }
    result = measure(options.out, settings, options.blocks, options.seeds)
    print(table(result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
