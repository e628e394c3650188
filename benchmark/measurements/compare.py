"""Compares finished simulator runs with pooled, local and majority-class baselines.

    python -m benchmark.measurements.compare WORKSPACE [WORKSPACE …] --out FILE.json [--no-baselines] [--jobs N]
    python -m benchmark.measurements.compare --show FILE.json

Each workspace holds a finished run of ``nvflare simulator … -w WORKSPACE``. Its final aggregate is evaluated on the
test images of each site, and on those of all sites together (`pooled`). The baselines train by the first run's
experiment for as many epochs as the federation: `pooled` on all training images in one place, one `local` for each site
on its images alone. The majority class needs no training.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from pydantic import JsonValue

from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.baselines import majority, pooled
from benchmark.oracle.evaluation import Predictions, predict
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.data.site_data import SiteData
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import check_place
from pt_peft.model.adapter_file import load_adapter
from pt_peft.schema import read_json
from pt_peft.training.trainer import LocalTrainer
from pt_peft_flare.learner import FINAL_ADAPTER

Metrics = dict[str, Any]
"""The fields of `pt_peft.training.metrics.evaluate_predictions`."""

COLUMNS = ("balanced_accuracy", "auroc", "macro_f1", "accuracy")


class Row(TypedDict):
    """One model of a comparison."""

    name: str
    exchanged_parameters: NotRequired[int]
    """Parameters that a site sends in a round; absent for baselines."""
    test: dict[str, Metrics]
    """Test metrics under ``pooled`` and of each site that has test images, by its name."""


class Comparison(TypedDict):
    """The content of a result file."""

    provenance: Provenance
    experiment: dict[str, Any]
    """That of the first run."""
    site_data: dict[str, JsonValue]
    """What its sites' images mean."""
    rounds: int
    rows: list[Row]


class RunRecord(TypedDict):
    """The fields of a run's ``metrics.json`` that are read here."""

    rounds: int
    sites: dict[str, Any]
    exchanged: dict[str, int]


@dataclass(frozen=True)
class FinishedRun:
    """A finished simulator run, read from its workspace."""

    experiment: Experiment
    site: Site
    """The settings that all simulated sites shared."""
    record: RunRecord
    adapter: Path
    """The final aggregate."""

    @classmethod
    def read(cls, workspace: Path) -> "FinishedRun":
        """Raises UserError if `workspace` holds no finished run."""
        server = workspace / "server" / "simulate_job"
        content = read_json(server / "metrics.json")
        status = content.get("status") if isinstance(content, dict) else None
        if status != "finished":
            raise UserError(f"{server / 'metrics.json'}: status is {status!r}, not 'finished'.")
        record = cast(RunRecord, content)  # a finished run has them all
        site_file = workspace / "local" / "site.json"
        experiment = Experiment.read(server / "app_server" / "config" / "experiment.json")
        # The server of an encrypted federation never has the decrypted aggregate.
        at_a_site = workspace / min(record["sites"]) / "simulate_job" / FINAL_ADAPTER
        return cls(
            experiment=experiment,
            site=Site.read(site_file) if site_file.exists() else Site(),
            record=record,
            adapter=at_a_site if experiment.encryption else server / "adapter.safetensors",
        )

    def open(self) -> tuple[LocalTrainer, dict[str, SiteData]]:
        """Returns a trainer, and the data of every site by its name."""
        return make_trainer(self.experiment, self.site), load_sites(
            self.experiment, self.site, list(self.record["sites"])
        )


def compare(workspaces: Sequence[Path], baselines: bool, jobs: int) -> Comparison:
    """Evaluates the runs, and trains and evaluates the baselines.

    Args:
        workspaces: one of each run.
        baselines: whether the baselines are trained.
        jobs: how many baselines train at the same time, each on as many threads as a site.

    Raises:
        UserError: if a workspace holds no finished run, or one whose sites end with different models.
    """
    origin = provenance()
    runs = [FinishedRun.read(workspace) for workspace in workspaces]
    for run in runs:
        method = run.experiment.method
        if "local" in (method.head, *method.roles.values()):
            field = "method.head" if method.head == "local" else "method.roles"
            raise UserError(
                f"{run.adapter.parent}: field '{field}' makes tensors 'local', so there is no single model to compare; "
                "metrics.json has the metrics of each site's own model."
            )
    rows: list[Row] = []
    for run in runs:
        trainer, sites = run.open()
        rows.append(
            {
                "name": f"federated {run.experiment.method.name}",
                "exchanged_parameters": run.record["exchanged"]["parameters"],
                "test": evaluate(trainer, load_adapter(run.adapter)[0], sites),
            }
        )
    if baselines:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            # Pooled first: it takes as long as all local ones together.
            trained = [pool.submit(_train_baseline, runs[0], name) for name in (None, *runs[0].record["sites"])]
            rows.extend(future.result() for future in trained)
        experiment = runs[0].experiment
        rows.append({"name": "majority class", "test": _flat(majority(experiment.data, runs[0].open()[1]), experiment)})
    return {
        "provenance": origin,
        "experiment": runs[0].experiment.model_dump(mode="json"),
        "site_data": runs[0].site.data.meaning(),
        "rounds": runs[0].record["rounds"],
        "rows": rows,
    }


def evaluate(trainer: LocalTrainer, tensors: Tensors, sites: Mapping[str, SiteData]) -> dict[str, Metrics]:
    """Evaluates the model with the aggregate `tensors` on the test images.

    Returns:
        Metrics of each site that has test images, by its name, and of all test images together under ``pooled``.

    Raises:
        UserError: if no site has test images.
    """
    return _flat(predict(trainer, tensors, {}, sites, "test"), trainer.experiment)


def _flat(predictions: Predictions, experiment: Experiment) -> dict[str, Metrics]:
    metrics = predictions.metrics(experiment.data.task)
    return {"pooled": metrics["pooled"], **metrics["sites"]}


def _train_baseline(run: FinishedRun, alone: str | None) -> Row:
    """Trains on the images of the site `alone`, or on all sites' images in one place for None."""
    trainer, sites = run.open()
    chosen = {alone: sites[alone]} if alone else {"pooled": pooled(sites)}
    final = federate(trainer, chosen).tensors
    return {"name": f"local {alone}" if alone else "pooled", "test": evaluate(trainer, final, sites)}


def table(result: Comparison) -> str:
    """The result as a Markdown table: parameters sent, pooled metrics, then the balanced accuracy of each site."""
    sites = [name for name in result["rows"][0]["test"] if name != "pooled"]
    header = ["", "sent a round", *(f"{column.replace('_', ' ')}" for column in COLUMNS), *sites]
    lines: list[list[str]] = []
    for row in result["rows"]:
        pooled = [_shown(row["test"]["pooled"][column]) for column in COLUMNS]
        sent = f"{row['exchanged_parameters']:,}" if "exchanged_parameters" in row else "\N{EN DASH}"
        lines.append([row["name"], sent, *pooled, *(_shown(row["test"][site]["balanced_accuracy"]) for site in sites)])
    return markdown_table(header, lines)


def _shown(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


@command
def main(arguments: list[str] | None = None) -> None:
    """Compares runs and writes the result file, or prints one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workspaces", nargs="*", type=Path, help="workspaces of finished runs")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument(
        "--jobs", type=int, default=1, help="baselines that train at the same time (default: %(default)s)"
    )
    parser.add_argument("--no-baselines", action="store_true", help="leave out pooled, local and majority class")
    parser.add_argument("--show", type=Path, help="print a result file as a table")
    options = parser.parse_args(arguments)
    if options.show:
        result = read_json(options.show)
        if not (isinstance(result, dict) and result.get("rows")):
            raise UserError(f"{options.show}: is not a result file of this command.")
        print(table(cast(Comparison, result)))  # the rows tell a result file of this command
        return
    if not (options.workspaces and options.out):
        parser.error("a workspace and --out are needed, or --show")
    check_place(options.out)
    result = compare(options.workspaces, not options.no_baselines, options.jobs)
    finish(options, result, table(result))


if __name__ == "__main__":
    sys.exit(main())
