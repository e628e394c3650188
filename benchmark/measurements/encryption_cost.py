"""Measures the cost of homomorphic encryption: rounds of the demo with and without it, and larger payloads.

    python -m benchmark.measurements.encryption_cost [--repeats 5] [--out benchmark/results/encryption.json]

A turn is the exchange of one round after local training, by three sites and the server in one process: check and add
without encryption; encrypt, check, add and decrypt with it. Plain and encrypted turns alternate. Bytes are those of
tensors and ciphertexts, counted as in the ledger.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np

from benchmark.measurements.options import parse_with_repeats
from benchmark.measurements.payload_shapes import lora_vpt
from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.reference import load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.encryption.ciphertexts import Cipher, Sum
from pt_peft.encryption.contexts import Context, new_context, server_context
from pt_peft.encryption.encrypted_statistics import decrypted, encrypted
from pt_peft.environment import versions
from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.ciphertext_layout import DEGREE, PRIME_BITS, SCALE, Layout
from pt_peft.exchange.tensors import Tensors, TensorSpec, check_tensors, payload_bytes
from pt_peft.experiment.statistics import PREFIX
from pt_peft.federation.local_round import local_round
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.presets import demo
from pt_peft.statistics.closed_form import candidates
from pt_peft.statistics.moments import Moments, class_counts, class_weights, moments, total
from pt_peft.statistics.moments import specs as moment_specs

OUT = Path("benchmark/results/encryption.json")
NAMES = ("site-1", "site-2", "site-3")
IMAGES = {"train": 64, "val": 16, "test": 16}
"""Images of a site of the demo: few, so that a round takes seconds."""


class Turn(TypedDict):
    """Seconds and bytes of one turn. Bytes are those of one site."""

    encrypt_s: NotRequired[float]
    """Mean over the sites; absent from a plain turn, like the next one and `decrypt_s`."""
    check_s: NotRequired[float]
    """A site's check of its own ciphertexts; mean over the sites."""
    server_s: float
    """All that the server does."""
    decrypt_s: NotRequired[float]
    """On one site."""
    bytes_up: float
    bytes_down: float


class Turns(TypedDict):
    """A plain and an encrypted turn with the same results of the sites."""

    plain: Turn
    encrypted: Turn
    error: float
    """Greatest difference between a value of the plain mean and of the decrypted one."""


class Case(TypedDict):
    """The measurements of one payload."""

    case: str
    values: int
    """Numbers in the payload."""
    ciphertexts: int
    plain: dict[str, float]
    """The median of each field of the plain turns."""
    encrypted: dict[str, float]
    """The median of each field of the encrypted turns."""
    expansion_up: float
    """Encrypted bytes up over plain ones."""
    largest_error: float
    """The greatest `Turns.error`."""
    training_s: NotRequired[float]
    """Median seconds of a site's local training; the demo only."""


class SolvedError(TypedDict):
    """How far a ridge classifier from encrypted sums is from that of the sums themselves: the demo's linear probe."""

    penalty: float
    largest: float
    """Greatest magnitude of the classifier's numbers."""
    error: float
    """Greatest difference between two of them."""


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    scheme: dict[str, object]
    """The parameters of CKKS."""
    sites: int
    repeats: int
    cases: list[Case]
    classifiers: list[SolvedError]


PAYLOADS = {
    "ViT-Tiny, LoRA r=4 + 10 deep prompts, 7 classes": lora_vpt(192, 12, 4, 10, 7),
    "ViT-B/16, LoRA r=4, 7 classes": lora_vpt(768, 12, 4, 0, 7),
    "sums of a ViT-Tiny's features, 7 classes": moment_specs(7, 192),
    "sums of a ViT-B's features, 7 classes": moment_specs(7, 768),
}


def plain_turn(results: Mapping[str, Tensors], specs: Mapping[str, TensorSpec], weight: int) -> tuple[Turn, Tensors]:
    """Checks and adds the sites' tensors. Returns the turn's costs and the mean."""
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
) -> tuple[Turn, Tensors]:
    """Encrypts, checks, adds and decrypts the sites' tensors. Returns the turn's costs and the mean."""
    opened = Sum(public, cipher.layout)
    encrypt_s: list[float] = []
    check_s: list[float] = []
    add_s: list[float] = []
    up: list[int] = []
    for tensors in results.values():
        started = time.perf_counter()
        payload = cipher.encrypt(tensors, weight)
        encrypted = time.perf_counter()
        cipher.check_own(payload, weight)
        checked = time.perf_counter()
        opened.add(payload, weight)
        add_s.append(time.perf_counter() - checked)
        check_s.append(checked - encrypted)
        encrypt_s.append(encrypted - started)
        up.append(payload_bytes(payload))
    started = time.perf_counter()
    summed = opened.result()
    result_s = time.perf_counter() - started
    started = time.perf_counter()
    mean = cipher.decrypt_sum(summed)
    turn: Turn = {
        "encrypt_s": statistics.mean(encrypt_s),
        "check_s": statistics.mean(check_s),
        "server_s": sum(add_s) + result_s,
        "decrypt_s": time.perf_counter() - started,
        "bytes_up": statistics.mean(up),
        "bytes_down": payload_bytes(summed),
    }
    return turn, mean


def compare(name: str, turns: Sequence[Turns], specs: Mapping[str, TensorSpec]) -> Case:
    """Summarises the turns of a case.

    Args:
        name: of the case.
        turns: one for each repeat.
        specs: of the payload.
    """
    plain, encrypted = (_medians([turn[kind] for turn in turns]) for kind in ("plain", "encrypted"))
    layout = Layout(specs)
    return {
        "case": name,
        "values": layout.values,
        "ciphertexts": len(layout.keys),
        "plain": plain,
        "encrypted": encrypted,
        "expansion_up": encrypted["bytes_up"] / plain["bytes_up"],
        "largest_error": max(turn["error"] for turn in turns),
    }


def _medians(turns: Sequence[Turn]) -> dict[str, float]:
    numbers = cast(Sequence[Mapping[str, float]], turns)  # all fields of a turn are numbers
    return {field: statistics.median(turn[field] for turn in numbers) for field in numbers[0]}


def measure(repeats: int) -> Result:
    """Measures all cases. Returns the content of the result file. Raises UserError if tenseal is not installed."""
    private = new_context()
    public = server_context(
        private.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False), "new"
    )
    origin = provenance()
    cases = [_demo(private, public, repeats)]
    random = np.random.default_rng(0)
    for name, specs in PAYLOADS.items():
        cipher = Cipher(private, Layout(specs), 1e4)
        turns: list[Turns] = []
        for _ in range(repeats):
            results = {site: _random_tensors(specs, random) for site in NAMES}
            turns.append(_turns(results, cipher, public, specs, 400))
        cases.append(compare(name, turns, specs))
    return {
        "provenance": {**origin, "versions": {**origin["versions"], **versions(["tenseal"])}},
        "scheme": {"name": "ckks", "degree": DEGREE, "prime_bits": list(PRIME_BITS), "scale": SCALE},
        "sites": len(NAMES),
        "repeats": repeats,
        "cases": cases,
        "classifiers": _classifiers(private, public),
    }


def _random_tensors(specs: Mapping[str, TensorSpec], random: np.random.Generator) -> Tensors:
    return {key: random.normal(scale=0.05, size=spec.shape).astype(spec.dtype) for key, spec in specs.items()}


def _turns(
    results: Mapping[str, Tensors], cipher: Cipher, public: Context, specs: Mapping[str, TensorSpec], weight: int
) -> Turns:
    plain, expected = plain_turn(results, specs, weight)
    encrypted, mean = encrypted_turn(results, cipher, public, weight)
    error = max(float(np.abs(mean[key] - value).max()) for key, value in expected.items())
    return {"plain": plain, "encrypted": encrypted, "error": error}


def _demo(private: Context, public: Context, repeats: int) -> Case:
    """Trains the demo locally, with a plain and an encrypted turn after each training."""
    experiment, site = demo("lora_vpt")
    experiment = experiment.model_copy(update={"data": experiment.data.model_copy(update={"images_per_site": IMAGES})})
    trainer = make_trainer(experiment, site)
    data = load_sites(experiment, site, list(NAMES))
    specs = trainer.exchange.up(0)
    cipher = Cipher(private, Layout(specs), 1e4)
    start = initial_exchanged(experiment, trainer.exchange, trainer.initial)
    turns: list[Turns] = []
    training: list[float] = []
    for _ in range(repeats):
        results: dict[str, Tensors] = {}
        for name in NAMES:
            started = time.perf_counter()
            results[name] = local_round(trainer, name, data[name].train, start, {}, 0).payload
            training.append(time.perf_counter() - started)
        turns.append(_turns(results, cipher, public, specs, IMAGES["train"]))
    case = compare("demo, LoRA r=4 + 10 deep prompts, 4 classes", turns, specs)
    return {**case, "training_s": statistics.median(training)}


def _classifiers(private: Context, public: Context) -> list[SolvedError]:
    """Compares classifiers from the sums of three sites, encrypted and not."""
    experiment, site = demo("linear_probe")
    trainer = make_trainer(experiment, site)
    cipher = Cipher(private, Layout({}), 1e4)
    data = load_sites(experiment, site, list(NAMES)).values()
    classes = len(experiment.data.classes)
    weights = class_weights(np.sum([class_counts(one.train.labels, classes) for one in data], axis=0))
    parts = [moments(trainer.features({}, one.train, "none"), one.train.labels, classes, weights) for one in data]
    layout = Layout(moment_specs(classes, trainer.exchange.features))
    opened = Sum(public, layout)
    for part in parts:
        images = int(part.counts.sum())
        opened.add(encrypted(cipher, part.to_tensors(), images), images)
    summed = {f"{PREFIX}moments/{key}": value for key, value in opened.result().items()}
    read = Moments.from_tensors(decrypted(cipher, experiment, trainer.exchange, summed).tensors)
    penalties = experiment.head.penalties
    pairs = zip(*(candidates("ridge", one, weights, penalties) for one in (total(parts), read)), strict=True)
    found: list[SolvedError] = []
    for penalty, (plain, other) in zip(penalties, pairs, strict=True):
        numbers = [np.concatenate([head.weight.ravel(), head.bias]) for head in (plain, other)]
        largest, error = float(np.abs(numbers[0]).max()), float(np.abs(numbers[0] - numbers[1]).max())
        found.append({"penalty": penalty, "largest": largest, "error": error})
    return found


def table(cases: Sequence[Case]) -> str:
    """The cases as a Markdown table."""
    columns = (
        *("values", "ciphertexts", "kB up plain", "encrypted", "factor"),
        *("encrypt", "check", "add (3 sites)", "decrypt", "largest error"),
    )
    lines: list[list[str]] = []
    for case in cases:
        plain, encrypted = case["plain"], case["encrypted"]
        seconds = (f"{1000 * encrypted[field]:.0f} ms" for field in ("encrypt_s", "check_s", "server_s", "decrypt_s"))
        kilobytes = (f"{one['bytes_up'] / 1000:,.0f}" for one in (plain, encrypted))
        sizes = (f"{case['values']:,}", str(case["ciphertexts"]), *kilobytes, f"{case['expansion_up']:.1f}")
        lines.append([case["case"], *sizes, *seconds, f"{case['largest_error']:.1e}"])
    return markdown_table(["", *columns], lines, texts=1)


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.encryption_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parse_with_repeats(parser, arguments, repeats=5, out=OUT)
    result = measure(options.repeats)
    finish(options, result, table(result["cases"]))


if __name__ == "__main__":
    sys.exit(main())
