"""Measures what one malicious site of five does to the model under each aggregation rule.

    python -m benchmark.measurements.attackers [--out benchmark/results/attackers.json] [--rounds N]

Runs the demo of a method on the embedded images in the plain loop. The first site trains honestly, then replaces its
update before it sends it: by its opposite, three times as large (`sign_flip`); by thirty times the update (`scaled`);
or by Gaussian noise of ten times the update's root mean square (`noise`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from benchmark.measurements.compare import evaluate
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import check_place
from pt_peft.presets import preset

OUT = Path("benchmark/results/attackers.json")
SITES = tuple(f"site-{number}" for number in range(1, 6))
MALICIOUS_SITE = SITES[0]
RULES: tuple[Mapping[str, str | int], ...] = (
    {"name": "mean", "weighting": "samples"},
    {"name": "norm_bounded_mean"},
    {"name": "trimmed_mean", "f": 1},
    {"name": "median"},
    {"name": "multi_krum", "f": 1},
)

Attack = Callable[[npt.NDArray[Any], np.random.Generator], npt.NDArray[Any]]
"""Maps a site's update of one tensor (trained minus received) to the one that it sends instead, of the same shape."""
ATTACKS: dict[str, Attack] = {
    "none": lambda update, random: update,
    "sign_flip": lambda update, random: -3 * update,
    "scaled": lambda update, random: 30 * update,
    "noise": lambda update, random: 10 * np.sqrt(np.mean(np.square(update))) * random.standard_normal(update.shape),
}


class Row(TypedDict):
    """The final model of one federation on all sites' test images."""

    aggregation: Mapping[str, str | int]
    """The experiment's `aggregation`."""
    attack: str
    """A key of `ATTACKS`."""
    balanced_accuracy: float
    """From 0 to 1."""
    loss: float
    """Mean cross-entropy, nats."""


def attacking(attack: Attack, site: str = MALICIOUS_SITE) -> Callable[[str, Tensors, Tensors], Tensors]:
    """Makes a `tamper` for `benchmark.oracle.reference.federate` by which `site` sends `attack` of its update.

    All its draws come from one generator with seed 0.
    """
    random = np.random.default_rng(0)

    def tamper(name: str, received: Tensors, sent: Tensors) -> Tensors:
        if name != site:
            return sent
        updates = {key: attack(value - received[key], random) for key, value in sent.items()}
        return {key: (received[key] + update).astype(sent[key].dtype) for key, update in updates.items()}

    return tamper


def measure(experiment: Experiment, site: Site, rules: Sequence[Mapping[str, str | int]] = RULES) -> list[Row]:
    """Runs one federation for each of `rules` and each attack. Raises UserError if the images cannot be read."""
    rows: list[Row] = []
    for rule in rules:
        aggregation = TypeAdapter(Aggregation).validate_python(rule)
        trainer = make_trainer(experiment.model_copy(update={"aggregation": aggregation}), site)
        sites = load_sites(experiment, site, list(SITES))
        for name, attack in ATTACKS.items():
            found = evaluate(trainer, federate(trainer, sites, tamper=attacking(attack)).tensors, sites)["pooled"]
            rows.append(
                {
                    "aggregation": rule,
                    "attack": name,
                    "balanced_accuracy": found["balanced_accuracy"],
                    "loss": found["loss"],
                }
            )
            print(f"{rule['name']:20} {name:10} {found['balanced_accuracy']:.3f}", file=sys.stderr)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Balanced accuracy as a Markdown table: a row for each aggregation rule, a column for each attack."""
    lines: list[list[str]] = []
    for name in dict.fromkeys(row["aggregation"]["name"] for row in rows):
        accuracy = {row["attack"]: row["balanced_accuracy"] for row in rows if row["aggregation"]["name"] == name}
        lines.append([f"`{name}`", *(f"{accuracy[attack]:.3f}" for attack in ATTACKS)])
    return markdown_table(["", *ATTACKS], lines)


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.attackers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", default="lora_vpt", help="method whose demo is run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a federation (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_place(options.out)
    experiment, site = preset(options.method)
    fields = experiment.model_dump(mode="json")
    fields["data"]["images_per_site"] = {"train": 192, "val": 16, "test": 128}
    fields["federation"] |= {"sites": list(SITES), "min_sites": len(SITES), "rounds": options.rounds}
    experiment = Experiment.model_validate_json(json.dumps(fields))
    origin = provenance()
    rows = measure(experiment, site)
    result = {
        "provenance": origin,
        "experiment": experiment.model_dump(mode="json"),
        "liar": MALICIOUS_SITE,
        "rows": rows,
    }
    finish(options, result, table(rows))


if __name__ == "__main__":
    sys.exit(main())
