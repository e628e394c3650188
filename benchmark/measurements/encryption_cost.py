"""What homomorphic encryption costs: rounds of the demo with and without it in turns, and the vectors of larger models.

    python -m benchmark.measurements.encryption_cost [--repeats 5] [--out benchmark/results/encryption.json]

A turn is what three sites and the server do with the results of a local training: check and add them, without encryption; or encrypt,
check, add, decrypt. In one process, without a network; bytes are of tensors and ciphertexts, as the ledger counts them.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmark.measurements.provenance import provenance
from benchmark.oracle.reference import load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.encryption.ciphertexts import Cipher, Sum
from pt_peft.encryption.contexts import Context, new_context, server_context
from pt_peft.environment import versions
from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.ciphertext_layout import DEGREE, PRIME_BITS, SCALE, Layout
from pt_peft.exchange.tensors import Tensors, TensorSpec, check_tensors, payload_bytes
from pt_peft.federation.local_round import local_round
from pt_peft.files import write_atomically
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.presets import demo

NAMES = ("site-1", "site-2", "site-3")
IMAGES = {"train": 64, "val": 16, "test": 16}
"""Of a site of the demo, so that a round takes seconds."""


def lora_vpt(width: int, blocks: int, rank: int, prompts: int, classes: int) -> dict[str, TensorSpec]:
    """What LoRA of the fused qkv, with deep prompts, exchanges on a ViT."""
    shapes = {"head.weight": (classes, width), "head.bias": (classes,)}
    for block in range(blocks):
        shapes[f"blocks.{block}.attn.qkv.lora_A"] = (rank, width)
        shapes[f"blocks.{block}.attn.qkv.lora_B"] = (3 * width, rank)
        if prompts:
            shapes[f"blocks.{block}.prompts"] = (prompts, width)
    return {key: TensorSpec(shape, "float32") for key, shape in shapes.items()}


VECTORS = {
    "ViT-Tiny, LoRA r=4 + 10 deep prompts, 7 classes": lora_vpt(192, 12, 4, 10, 7),
    "ViT-B/16, LoRA r=4, 7 classes": lora_vpt(768, 12, 4, 0, 7),
}


def plain_turn(results: Mapping[str, Tensors], specs: Mapping[str, TensorSpec], weight: int) -> tuple[dict, Tensors]:
    """Seconds and bytes, and the mean."""
    started = time.perf_counter()
    mean = RunningMean(by_samples=True)
    for name, tensors in results.items():
        mean.add(SiteResult(name, check_tensors(tensors, specs), weight))
    aggregate = mean.result()
    seconds = time.perf_counter() - started
    nbytes = payload_bytes(aggregate)
    return {"server_s": seconds, "bytes_up": nbytes, "bytes_down": nbytes}, aggregate


def encrypted_turn(
    results: Mapping[str, Tensors], cipher: Cipher, public: Context, weight: int
) -> tuple[dict, Tensors]:
    """The same; seconds of a site are means over the sites."""
    opened, encrypt_s, check_s, add_s, up = Sum(public, cipher.layout), [], [], [], []
    for tensors in results.values():
        times = [time.perf_counter()]
        payload = cipher.encrypt(tensors, weight)
        times.append(time.perf_counter())
        cipher.check_own(payload, weight)
        times.append(time.perf_counter())
        opened.add(payload, weight)
        times.append(time.perf_counter())
        for taken, since, until in zip((encrypt_s, check_s, add_s), times, times[1:], strict=False):
            taken.append(until - since)
        up.append(payload_bytes(payload))
    started = time.perf_counter()
    summed = opened.result()
    result_s = time.perf_counter() - started
    started = time.perf_counter()
    mean = cipher.decrypt_sum(summed)
    turn = {
        "encrypt_s": statistics.mean(encrypt_s),
        "check_s": statistics.mean(check_s),
        "server_s": sum(add_s) + result_s,
        "decrypt_s": time.perf_counter() - started,
        "bytes_up": statistics.mean(up),
        "bytes_down": payload_bytes(summed),
    }
    return turn, mean


def compare(name: str, turns: list[tuple[dict, dict]], specs: Mapping[str, TensorSpec], error: float) -> dict:
    """The medians of a case's turns, plain and encrypted."""
    plain, encrypted = ([turn[kind] for turn in turns] for kind in (0, 1))
    medians = [
        {field: statistics.median(one[field] for one in kind) for field in kind[0]} for kind in (plain, encrypted)
    ]
    layout = Layout(specs)
    return {
        "case": name,
        "values": layout.values,
        "ciphertexts": len(layout.keys),
        "plain": medians[0],
        "encrypted": medians[1],
        "expansion_up": medians[1]["bytes_up"] / medians[0]["bytes_up"],
        "largest_error": error,
    }


def measure(repeats: int) -> dict:
    """The content of the result file. Raises UserError where tenseal is not installed."""
    private = new_context()
    public = server_context(
        private.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False), "new"
    )
    cases = [_demo(private, public, repeats)]
    random = np.random.default_rng(0)
    for name, specs in VECTORS.items():
        cipher = Cipher(private, Layout(specs), 1e4)
        turns, error = [], 0.0
        for _ in range(repeats):
            results = {
                site: {
                    key: random.normal(scale=0.05, size=spec.shape).astype(np.float32) for key, spec in specs.items()
                }
                for site in NAMES
            }
            turns.append(_turns(results, cipher, public, specs, 400))
            error = max(error, turns[-1][2])
        cases.append(compare(name, turns, specs, error))
    return {
        "provenance": {**provenance(), "tenseal": versions(["tenseal"])["tenseal"]},
        "scheme": {"name": "ckks", "degree": DEGREE, "prime_bits": list(PRIME_BITS), "scale": SCALE},
        "sites": len(NAMES),
        "repeats": repeats,
        "cases": cases,
    }


def _turns(
    results: Mapping[str, Tensors], cipher: Cipher, public: Context, specs: Mapping, weight: int
) -> tuple[dict, dict, float]:
    plain, expected = plain_turn(results, specs, weight)
    encrypted, mean = encrypted_turn(results, cipher, public, weight)
    return plain, encrypted, max(float(np.abs(mean[key] - value).max()) for key, value in expected.items())


def _demo(private: Context, public: Context, repeats: int) -> dict:
    """Local trainings of the demo, a turn after each."""
    experiment, site = demo("lora_vpt")
    experiment = experiment.model_copy(update={"data": experiment.data.model_copy(update={"images_per_site": IMAGES})})
    trainer = make_trainer(experiment, site)
    data = load_sites(experiment, site, list(NAMES))
    specs = trainer.exchange.up(0)
    cipher, start = Cipher(private, Layout(specs), 1e4), initial_exchanged(trainer.exchange, trainer.initial)
    turns, training, error = [], [], 0.0
    for _ in range(repeats):
        results = {}
        for name in NAMES:
            started = time.perf_counter()
            results[name] = local_round(trainer, name, data[name].train, start, {}, 0).payload
            training.append(time.perf_counter() - started)
        turns.append(_turns(results, cipher, public, specs, IMAGES["train"]))
        error = max(error, turns[-1][2])
    case = compare("demo, LoRA r=4 + 10 deep prompts, 4 classes", turns, specs, error)
    return {**case, "training_s": statistics.median(training)}


def table(result: dict) -> str:
    """Markdown."""
    lines = [
        "| | values | ciphertexts | kB up plain | encrypted | factor | encrypt | check | add (3 sites) | decrypt | largest error |",
        "|---|" + "---:|" * 10,
    ]
    for case in result["cases"]:
        plain, encrypted = case["plain"], case["encrypted"]
        seconds = " | ".join(
            f"{1000 * encrypted[field]:.0f} ms" for field in ("encrypt_s", "check_s", "server_s", "decrypt_s")
        )
        lines.append(
            f"| {case['case']} | {case['values']:,} | {case['ciphertexts']} | {plain['bytes_up'] / 1000:,.0f} | "
            f"{encrypted['bytes_up'] / 1000:,.0f} | {case['expansion_up']:.1f} | {seconds} | {case['largest_error']:.1e} |"
        )
    return "\n".join(lines)


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.encryption_cost", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each kind")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "encryption.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    result = measure(options.repeats)
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1) if options.json else table(result))


if __name__ == "__main__":
    sys.exit(main())
