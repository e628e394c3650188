"""What one lying site of five does to the aggregate, by the way that the results are aggregated.

    python -m benchmark.measurements.attackers [--out benchmark/results/attackers.json] [--rounds N]

The demo of a method on the embedded images, by the plain loop. The first site trains honestly and then sends, of what it has
changed: the opposite, three times as large (`sign_flip`); thirty times as much (`scaled`); or Gaussian noise, ten times as
large as its change, instead (`noise`).
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from benchmark.measurements.compare import evaluate
from benchmark.measurements.provenance import provenance
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import check_place, write_atomically
from pt_peft.presets import preset

SITES = tuple(f"site-{number}" for number in range(1, 6))
LIAR = SITES[0]
RULES = (
    {"name": "mean", "weighting": "samples"},
    {"name": "norm_bounded_mean"},
    {"name": "trimmed_mean", "f": 1},
    {"name": "median"},
    {"name": "multi_krum", "f": 1},
)

Attack = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Of what a site has changed in one tensor, what it says that it has changed."""
ATTACKS: dict[str, Attack] = {
    "none": lambda change, random: change,
    "sign_flip": lambda change, random: -3 * change,
    "scaled": lambda change, random: 30 * change,
    "noise": lambda change, random: 10 * np.sqrt(np.mean(np.square(change))) * random.standard_normal(change.shape),
}


def lying(attack: Attack, site: str = LIAR) -> Callable[[str, Tensors, Tensors], Tensors]:
    """For `benchmark.oracle.reference.federate`: `site` sends what `attack` makes of it, from draws that are always the same."""
    random = np.random.default_rng(0)

    def tamper(name: str, received: Tensors, sent: Tensors) -> Tensors:
        if name != site:
            return sent
        changed = {key: attack(value - received[key], random) for key, value in sent.items()}
        return {key: (received[key] + change).astype(sent[key].dtype) for key, change in changed.items()}

    return tamper


def measure(experiment: Experiment, site, rules=RULES) -> list[dict]:
    """One row for each way to aggregate and each attack: ``balanced_accuracy`` of all sites' test images together, ``loss``."""
    rows = []
    for rule in rules:
        aggregation = TypeAdapter(Aggregation).validate_python(rule)
        trainer = make_trainer(experiment.model_copy(update={"aggregation": aggregation}), site)
        sites = load_sites(experiment, site, list(SITES))
        for name, attack in ATTACKS.items():
            found = evaluate(trainer, federate(trainer, sites, tamper=lying(attack)).tensors, sites)["pooled"]
            rows.append(
                {
                    "aggregation": rule,
                    "attack": name,
                    **{field: found[field] for field in ("balanced_accuracy", "loss")},
                }
            )
            print(f"{rule['name']:20} {name:10} {found['balanced_accuracy']:.3f}", file=sys.stderr)
    return rows


def table(rows: list[dict]) -> str:
    """Balanced accuracy as Markdown, a row a way to aggregate."""
    lines = [["", *ATTACKS], ["---"] * (len(ATTACKS) + 1)]
    for name in dict.fromkeys(row["aggregation"]["name"] for row in rows):
        of_rule = {row["attack"]: row["balanced_accuracy"] for row in rows if row["aggregation"]["name"] == name}
        lines.append([f"`{name}`", *(f"{of_rule[attack]:.3f}" for attack in ATTACKS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.attackers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--method", default="lora_vpt", help="whose demo (lora_vpt)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark/results/attackers.json"), help="result file to write"
    )
    options = parser.parse_args(arguments)
    check_place(options.out)
    experiment, site = preset(options.method)
    fields = experiment.model_dump(mode="json")
    fields["data"]["images_per_site"] = {"train": 192, "val": 16, "test": 128}
    fields["federation"] |= {"sites": list(SITES), "min_sites": len(SITES), "rounds": options.rounds}
    experiment = Experiment.model_validate_json(json.dumps(fields))
    origin = provenance()
    rows = measure(experiment, site)
    result = {"provenance": origin, "experiment": experiment.model_dump(mode="json"), "liar": LIAR, "rows": rows}
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
