"""Finished simulator runs beside what they have to be compared with.

    python -m benchmark.compare WORKSPACE [WORKSPACE …] --out FILE.json [--no-baselines]
    python -m benchmark.compare --show FILE.json

Each workspace holds a finished run of ``nvflare simulator … -w WORKSPACE``. Its final aggregate is evaluated on the test
images of each site and of all sites together (pooled, exact). The first run's experiment also gives the baselines, each
with as many epochs as the federation: `pooled` (all training images in one place), one `local` a site (that site alone)
and the majority class.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmark.provenance import provenance
from benchmark.reference import federate, load_sites, make_trainer
from pt_peft.adapter_file import load_adapter
from pt_peft.data.site_data import SiteData, Split
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.files import write_atomically
from pt_peft.metrics import confusion_matrix_metrics
from pt_peft.schema import read_json
from pt_peft.site import Site
from pt_peft.tensors import Tensors
from pt_peft.training import LocalTrainer

COLUMNS = ("balanced_accuracy", "auroc", "macro_f1", "accuracy")


def compare(workspaces: list[Path], baselines: bool) -> dict:
    """The content of a result file, see the module.

    Raises:
        UserError: if a workspace holds no finished run.
    """
    rows = []
    for index, workspace in enumerate(workspaces):
        server = workspace / "server" / "simulate_job"
        record = read_json(server / "metrics.json")
        if record["status"] != "finished":
            raise UserError(f"{server / 'metrics.json'}: status is '{record['status']}', not 'finished'.")
        experiment = Experiment.read(server / "app_server" / "config" / "experiment.json")
        site_file = workspace / "local" / "site.json"
        site = Site.read(site_file) if site_file.exists() else Site()
        names = sorted(record["final"]["sites"])
        trainer = make_trainer(experiment, site)
        sites = load_sites(experiment, site, names)
        tensors, _ = load_adapter(server / "adapter.safetensors")
        row = {
            "name": f"federated {experiment.method.name}",
            "exchanged_parameters": record["exchanged"]["parameters"],
            "test": evaluate(trainer, tensors, sites),
        }
        rows.append(row)
        if index == 0:
            first, images = experiment, {name: len(data.train) for name, data in sites.items()}
            if baselines:
                rows.extend(_baselines(trainer, sites))
    return {
        "provenance": provenance(),
        "experiment": first.model_dump(mode="json"),
        "train_images": images,
        "rows": rows,
    }


def evaluate(trainer: LocalTrainer, tensors: Tensors, sites: Mapping[str, SiteData]) -> dict:
    """Test metrics of each site, and of all test images together under ``pooled``."""
    metrics = {name: trainer.evaluate(tensors, data.test) for name, data in sites.items()}
    return {"pooled": trainer.evaluate(tensors, _together([data.test for data in sites.values()])), **metrics}


def _baselines(trainer: LocalTrainer, sites: Mapping[str, SiteData]) -> list[dict]:
    pooled = SiteData(*(_together([getattr(data, split) for data in sites.values()]) for split in ("train", "val", "test")))
    rows = [{"name": "pooled", "test": evaluate(trainer, federate(trainer, {"pooled": pooled}), sites)}]
    for name, data in sites.items():
        rows.append({"name": f"local {name}", "test": evaluate(trainer, federate(trainer, {name: data}), sites)})
    classes = len(trainer.experiment.data.classes)
    majority = int(np.bincount(pooled.train.labels, minlength=classes).argmax())
    tests = {"pooled": pooled.test, **{name: data.test for name, data in sites.items()}}
    rows.append({"name": "majority class", "test": {name: _constant(test, majority, classes) for name, test in tests.items()}})
    return rows


def _constant(split: Split, prediction: int, classes: int) -> dict:
    confusion = np.zeros((classes, classes), dtype=np.int64)
    confusion[:, prediction] = np.bincount(split.labels, minlength=classes)
    return {**confusion_matrix_metrics(confusion), "auroc": 0.5, "count": len(split), "confusion": confusion.tolist()}


def _together(splits: list[Split]) -> Split:
    return Split(np.concatenate([split.images for split in splits]), np.concatenate([split.labels for split in splits]))


def table(result: dict) -> str:
    """The result as Markdown: pooled metrics, then each site's balanced accuracy."""
    sites = [name for name in result["rows"][0]["test"] if name != "pooled"]
    header = ["", *(f"{column.replace('_', ' ')}" for column in COLUMNS), *sites]
    lines = [header, ["---"] * len(header)]
    for row in result["rows"]:
        pooled = [_shown(row["test"]["pooled"][column]) for column in COLUMNS]
        lines.append([row["name"], *pooled, *(_shown(row["test"][site]["balanced_accuracy"]) for site in sites)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.compare", description=__doc__.splitlines()[0])
    parser.add_argument("workspaces", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--no-baselines", action="store_true", help="leave out pooled, local and majority class")
    parser.add_argument("--show", type=Path, help="print a result file as a table")
    options = parser.parse_args(arguments)
    try:
        if options.show:
            print(table(read_json(options.show)))
            return 0
        if not (options.workspaces and options.out):
            parser.error("a workspace and --out are needed, or --show")
        result = compare(options.workspaces, not options.no_baselines)
        write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
        print(table(result))
        return 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
