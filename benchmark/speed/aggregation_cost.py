"""Measures one round of aggregation at the server, with results of made-up sites.

    python -m benchmark.speed.aggregation_cost RULE SITES [--prompts 0]

The results have the shapes that a ViT-B/16 with LoRA on qkv and a head for seven classes exchanges; there is no model.
They come one after the other and are not kept, so that what stays in memory is what the server keeps.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from benchmark.measurements.options import check_positive
from benchmark.measurements.payload_shapes import lora_vpt
from pt_peft.commands.dispatch import command
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import new_context, server_context
from pt_peft.encryption.encrypted_server import EncryptedServer
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.lora_pairs import Pair, pairs
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors, TensorSpec
from pt_peft.experiment.experiment import Experiment
from pt_peft.federation.protocol import Server
from pt_peft.federation.server import FederationServer
from pt_peft.schema import parse

CLASSES = tuple(f"class {number}" for number in range(7))
RANK, RANKS = 4, (2, 4, 8, 16)
"""LoRA's rank, and the ranks of sites that differ in it, in turn."""
SAMPLES = 400
"""Training images of a site, about."""
RULES: dict[str, dict[str, JsonValue]] = {
    "mean": {},
    "mean, rows by class": {"aggregation": {"name": "mean", "weighting": "class_samples"}},
    "mean, inverse variance": {"aggregation": {"name": "mean", "weighting": "inverse_variance"}},
    "mean with control variates": {"training": {"control_variates": True}},
    "mean with noise": {
        "aggregation": {"name": "mean", "weighting": "uniform"},
        "privacy": {"client": {"noise_multiplier": 1.0, "max_update_norm": 1.0, "delta": 1e-5, "where": "server"}},
    },
    "mean, fedavgm": {"server_optimizer": {"name": "fedavgm"}},
    "mean, fedadagrad": {"server_optimizer": {"name": "fedadagrad"}},
    "mean, fedadam": {"server_optimizer": {"name": "fedadam"}},
    "mean, fedyogi": {"server_optimizer": {"name": "fedyogi"}},
    "mean, swa": {"server_optimizer": {"name": "swa", "last_rounds": 1}},
    "median": {"aggregation": {"name": "median"}},
    "trimmed mean": {"aggregation": {"name": "trimmed_mean"}},
    "norm-bounded mean": {"aggregation": {"name": "norm_bounded_mean"}},
    "multi-Krum": {"aggregation": {"name": "multi_krum"}},
    "FFA-LoRA": {"method": {"roles": {"*.lora_A": "frozen"}}},
    "LoRA product": {"aggregation": {"name": "lora_product"}},
    "FedEx-LoRA": {"aggregation": {"name": "fedex_lora"}, "method": {"options": {"lora": {"residual": True}}}},
    "LoRA-FAIR": {"aggregation": {"name": "lora_fair"}},
    "encrypted mean": {"encryption": {"scheme": "ckks"}},
}  # fmt: skip
"""Sections of the experiment, by the name of the rule."""
MIXED = ", mixed ranks"
"""Ends the name of a rule whose sites differ in LoRA's rank."""
NAMES = [*RULES, *(name + MIXED for name in ("mean", "FFA-LoRA", "LoRA product", "FedEx-LoRA", "LoRA-FAIR"))]


Sent = tuple[str, Tensors, int]
"""A site's name, what it sends, and its number of training images."""


@dataclass(frozen=True)
class Shapes:
    """Of the ViT."""

    width: int = 768
    blocks: int = 12
    prompts: int = 0
    """In each block; 0 for LoRA alone."""


@dataclass(frozen=True)
class Cost:
    """Of one round."""

    arrival_s: float
    """Processor seconds in which the server checks and takes what comes, of all sites together."""
    finish_s: float
    """Processor seconds from the last site's result to the next round's tensors."""
    cpu_s: float
    """Both."""
    peak_mb: float
    """Peak memory above that before the round, 10^6 bytes; it has the one result in it that is on its way."""


def experiment(rule: str, sites: int, shapes: Shapes) -> Experiment:
    """The experiment of a rule in `NAMES`. Raises UserError if it needs more sites."""
    mixed = rule.endswith(MIXED)
    fields = RULES[rule.removesuffix(MIXED)]
    method: Any = fields.get("method", {})
    lora = {"rank": max(RANKS) if mixed else RANK, **method.get("options", {}).get("lora", {})}
    prompts = {"vpt_deep": {"num_prompts": shapes.prompts}} if shapes.prompts else {}
    names = [f"site-{number:03d}" for number in range(1, sites + 1)]
    content = {
        "name": "aggregation",
        "backbone": {"name": "vit_base_patch16_224", "image_size": 224, "sha256": "0" * 64},
        "data": {"source": "site", "classes": CLASSES},
        **fields,
        "method": {**method, "name": "+".join(["lora", *prompts]), "options": {"lora": lora, **prompts}},
        "federation": {
            "sites": names,
            "min_sites": sites,
            "lora_ranks": {name: RANKS[place % len(RANKS)] for place, name in enumerate(names)} if mixed else {},
        },
    }
    return parse(Experiment, content, rule)


def exchange(experiment: Experiment, shapes: Shapes) -> Exchange:
    """What travels: `pt_peft.model.planned_exchange` without a model."""
    lora: Any = experiment.method.options["lora"]
    specs = lora_vpt(shapes.width, shapes.blocks, lora["rank"], shapes.prompts, len(CLASSES))
    layers, head = pairs(specs), frozenset(key for key in specs if key.startswith("head."))
    computed: dict[str, TensorSpec] = {}
    if lora.get("residual"):
        computed = {pair.residual: _residual(pair, specs) for pair in layers}
    if experiment.method.roles:
        specs = {key: spec for key, spec in specs.items() if not key.endswith(".lora_A")}
    control: dict[str, TensorSpec] = {}
    if experiment.training.control_variates:
        control = {f"control/{key}": spec for key, spec in specs.items()}
    specs = {**specs, **computed, **control}
    return Exchange(specs, frozenset(specs), computed=frozenset(computed), control=frozenset(control), head=head)


def _residual(pair: Pair, specs: dict[str, TensorSpec]) -> TensorSpec:
    return TensorSpec((specs[pair.b].shape[0], specs[pair.a].shape[1]), "float32")


def tensors_of(specs: Mapping[str, TensorSpec], random: np.random.Generator) -> Tensors:
    """Small random values."""
    return {
        key: random.standard_normal(spec.shape, np.float32) * np.float32(0.05) for key, spec in sorted(specs.items())
    }


def cost(rule: str, sites: int, shapes: Shapes) -> Cost:
    """Measures one round with `sites` results by a rule in `NAMES`.

    Raises:
        UserError: if the rule needs more results, or tenseal is not installed.
    """
    asked = experiment(rule, sites, shapes)
    server, coming = (_encrypted if asked.encryption else _plain)(asked, exchange(asked, shapes))
    site, payload, images = next(coming)  # before the memory is looked at, for what the first one alone needs
    before = _start_peak()
    opened = server.start_round(0)
    arrival_s = 0.0
    while True:
        started = time.process_time()
        opened.add(site, payload, images)
        arrival_s += time.process_time() - started
        following = next(coming, None)
        if following is None:
            break
        site, payload, images = following
    started = time.process_time()
    server.finish_round(opened, sites)
    finish_s = time.process_time() - started
    return Cost(arrival_s, finish_s, arrival_s + finish_s, (_memory("VmHWM") - before) / 1e6)


def _plain(asked: Experiment, travels: Exchange) -> tuple[Server[Any], Iterator[Sent]]:
    """A server, and what each site sends, made one after the other."""
    names = asked.federation.sites
    server = FederationServer(asked, travels, tensors_of(travels.specs, np.random.default_rng(0)))
    server.class_counts = {name: np.full(len(CLASSES), float(SAMPLES)) for name in names}

    def results() -> Iterator[Sent]:
        for place, name in enumerate(names):
            yield name, tensors_of(server.exchange(name).up(0), np.random.default_rng([1, place])), SAMPLES + place

    return server, results()


def _encrypted(asked: Experiment, travels: Exchange) -> tuple[Server[Any], Iterator[Sent]]:
    """The same, but all sites send the same ciphertexts: adding takes as long whatever is in them."""
    private = new_context()
    content = private.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    specs = travels.up(0)
    payload = Cipher(private, Layout(specs), 1e4).encrypt(tensors_of(specs, np.random.default_rng(1)), SAMPLES)
    server = EncryptedServer(asked, travels, server_context(content, "new"))
    return server, ((name, dict(payload), SAMPLES) for name in asked.federation.sites)


def _start_peak() -> int:
    """Lets this process's peak memory begin anew. Returns its memory now, bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the cost as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.aggregation_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rule", choices=NAMES, metavar="RULE", help=f"one of: {'; '.join(NAMES)}")
    parser.add_argument("sites", type=int, help="number of results")
    parser.add_argument("--prompts", type=int, default=0, help="deep prompts in each block (default: none)")
    options = parser.parse_args(arguments)
    check_positive(options, "sites")
    print(json.dumps(asdict(cost(options.rule, options.sites, Shapes(prompts=options.prompts)))))


if __name__ == "__main__":
    sys.exit(main())
