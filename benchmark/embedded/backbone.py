"""Pre-trains the embedded backbone from scratch on formula-driven images, without a photograph or a download.

    python -m benchmark.embedded.backbone --out pt_peft/embedded/backbone.safetensors

This writes the weights and, beside them, a JSON file of the same name that says how to build the model and where it
came from. The same seed, steps, images and threads give the same file on one machine. ``--minutes`` is a ceiling for
slow machines: a run that reaches it ends early, and its JSON file records the steps it took.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from benchmark.embedded import fractals
from benchmark.embedded.cosine_stem import start_with_cosines
from benchmark.measurements.provenance import provenance
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import write_atomically

NAME = "vit_tiny_patch16_224"
IMAGE_SIZE = 64
KWARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

_BATCH = 64  # images a step
# The blocks' matrices train by Muon (Jordan et al. 2024): by the step at which it names textures AdamW still guesses.
# All other tensors train by AdamW.
_MUON_RATE, _ADAMW_RATE, _ADAMW_DECAY = 0.02, 1e-3, 0.05  # peak step sizes and weight decay
_WARM_UP = 0.05  # share of the steps in which the step sizes rise
# Most steps see half of an image's patches, which halves their cost (Li et al. 2023, "Scaling Language-Image
# Pre-training via Masking"); the last ones see all, as the finished model will.
_KEPT, _ALL_FROM = 0.5, 0.8  # share of the patches; share of the steps after which all are seen
_CHUNK = 2048  # images drawn by one task of the pool
_STEM_IMAGES = 1024  # images whose variance scales the patch embedding


@dataclass(frozen=True)
class Budget:
    """What a pre-training may use.

    Attributes:
        seed: from which the formulas, the images, the initial weights and their order follow.
        steps: optimiser steps of 64 images.
        images: different images drawn; they are passed over until the steps are done.
        validation: images on which the formula classifiers are judged at the end.
        minutes: ceiling of the training's wall time, or None.
        threads: used by PyTorch, and to draw images.
    """

    seed: int = 0
    steps: int = 1500
    images: int = 32_768
    validation: int = 2048
    minutes: float | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        for field, least in (("steps", 1), ("images", _BATCH), ("validation", 1), ("threads", 1)):
            if getattr(self, field) < least:
                raise UserError(f"--{field} is {getattr(self, field)}; it must be at least {least}.")
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"--minutes is {self.minutes}; it must be greater than 0.")


class FormulaHeads(nn.Module):
    """Linear classifiers over the backbone's tokens, which learn to name the formulas.

    The class token names the formula of each of ``fractals.HEADS``; every patch token names the texture of its place
    and tells whether the figure covers it.
    """

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        """Makes one classifier of tokens of `width` for each of `sizes`, its number of classes."""
        super().__init__()
        self.image = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.texture = nn.Linear(width, sizes[fractals.HEADS.index("ground")])
        self.covered = nn.Linear(width, 1)

    def forward(self, token: Tensor) -> list[Tensor]:
        """Class token (batch, width) to the logits of each of ``fractals.HEADS``, (batch, classes)."""
        return [head(token) for head in self.image]

    def losses(self, tokens: Tensor, labels: Tensor, covered: Tensor) -> list[Tensor]:
        """Cross-entropies of one batch: one for each of ``fractals.HEADS``, then texture, then cover.

        Args:
            tokens: (batch, 1 + patches, width).
            labels: int64 (batch, len(fractals.HEADS)).
            covered: bool (batch, patches).
        """
        patches = tokens[:, 1:]
        _, fill, ground, _ = labels.T
        texture = torch.where(covered, fill[:, None], ground[:, None])
        return [
            *(cross_entropy(o, t) for o, t in zip(self(tokens[:, 0]), labels.T, strict=True)),
            cross_entropy(self.texture(patches).flatten(0, 1), texture.flatten()),
            binary_cross_entropy_with_logits(self.covered(patches).squeeze(-1), covered.float()),
        ]


def pretrain(out: Path, budget: Budget) -> dict[str, Any]:
    """Pre-trains the backbone and writes ``out`` and its JSON file.

    Args:
        out: file of the weights; must end in ``.safetensors``.
        budget: seed, steps and the rest.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: ``out`` does not end in ``.safetensors``.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out is {out.name}; it must end in .safetensors.")
    torch.set_num_threads(budget.threads)
    torch.manual_seed(budget.seed)
    tables = fractals.make_tables(seed=budget.seed)
    started = time.monotonic()
    images, labels, maps = _draw(tables, budget, "train", budget.images)
    print(f"drew {len(images)} images in {time.monotonic() - started:.0f} s", flush=True)
    created = timm.create_model(NAME, pretrained=False, img_size=IMAGE_SIZE, num_classes=0, **KWARGS)
    model = cast(VisionTransformer, created)
    start_with_cosines(cast(nn.Conv2d, model.patch_embed.proj), _normalise(images[:_STEM_IMAGES]))
    heads = FormulaHeads(model.num_features, tables.sizes)
    steps = _train(model, heads, images, labels, maps, budget)
    accuracy = _validate(model, heads, *_draw(tables, budget, "val", budget.validation)[:2])
    weights = _weights(model)
    record = {
        "name": NAME,
        "kwargs": KWARGS,
        "image_size": IMAGE_SIZE,
        "mean": MEAN,
        "std": STD,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "provenance": {
            "command": f"python -m benchmark.embedded.backbone --out {out.name}",
            **asdict(budget),
            "steps": steps,
            "images_seen": steps * _BATCH,
            "seconds": round(time.monotonic() - started),
            "formula_families": fractals.FAMILIES,
            "validation_accuracy": accuracy,
            "chance_accuracy": {h: round(1 / n, 4) for h, n in zip(fractals.HEADS, tables.sizes, strict=True)},
            "versions": {m.__name__: m.__version__ for m in (np, timm, torch)},
            "git_commit": provenance()["commit"],
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, weights)
    write_atomically(out.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    return record


def _draw(tables: fractals.Tables, budget: Budget, part: str, count: int) -> tuple[np.ndarray, ...]:
    """Calls ``fractals.draw`` in parallel; the images do not depend on the number of threads."""

    def chunk(index: int) -> tuple[np.ndarray, ...]:
        share = min(_CHUNK, count - index * _CHUNK)
        return fractals.draw(tables, seed=budget.seed, part=part, index=index, count=share, size=IMAGE_SIZE)

    with ThreadPoolExecutor(budget.threads) as pool:
        chunks = pool.map(chunk, range(math.ceil(count / _CHUNK)))
    return tuple(np.concatenate(arrays) for arrays in zip(*chunks, strict=True))


def _train(
    model: VisionTransformer,
    heads: FormulaHeads,
    images: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    budget: Budget,
) -> int:
    """Trains until the steps are done or the minutes are over; returns the steps taken."""
    optimisers = _optimisers(model, heads)
    warm_up = max(1, round(_WARM_UP * budget.steps))

    def share_of_peak(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, budget.steps - warm_up))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, share_of_peak) for optimiser in optimisers]
    model.train()
    started = time.monotonic()
    for step, chosen in zip(range(budget.steps), _orders(len(images), budget.seed), strict=False):
        if budget.minutes is not None and time.monotonic() - started > 60 * budget.minutes:
            return step
        covered = torch.from_numpy(maps[chosen]).flatten(1)
        patches = covered.shape[1]
        share = _KEPT if step < _ALL_FROM * budget.steps else 1.0
        kept = torch.randperm(patches)[: round(share * patches)].sort().values
        tokens = _encode(model, _normalise(images[chosen]), kept)
        losses = heads.losses(tokens, torch.from_numpy(labels[chosen]), covered[:, kept])
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        if step % 100 == 0:
            names = (*fractals.HEADS, "texture", "cover")
            terms = " ".join(f"{name} {loss.item():.2f}" for name, loss in zip(names, losses, strict=True))
            print(f"step {step}/{budget.steps} {time.monotonic() - started:.0f} s loss: {terms}", flush=True)
    return budget.steps


def _optimisers(model: VisionTransformer, heads: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden}
    others = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": _ADAMW_DECAY},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.Muon(hidden, lr=_MUON_RATE, weight_decay=0.0), torch.optim.AdamW(groups, lr=_ADAMW_RATE)


def _encode(model: VisionTransformer, images: Tensor, kept: Tensor) -> Tensor:
    """Timm's ``forward_features`` on the patches `kept`: (batch, 1 + len(kept), width)."""
    tokens = model._pos_embed(model.patch_embed(images))
    tokens = torch.cat([tokens[:, :1], tokens[:, 1 + kept]], dim=1)
    return model.norm(model.blocks(model.norm_pre(tokens)))


def _orders(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the indices of one batch after another without end, in a new order in every pass."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from (order[i : i + _BATCH] for i in range(0, count - _BATCH + 1, _BATCH))


def _normalise(images: np.ndarray) -> Tensor:
    """Normalises uint8 (batch, size, size, 3) to float32 (batch, 3, size, size)."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    return pixels.sub(torch.tensor(MEAN).view(3, 1, 1)).div(torch.tensor(STD).view(3, 1, 1))


@torch.no_grad()
def _validate(
    model: VisionTransformer, heads: FormulaHeads, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Returns the share of unseen images whose formula each head names."""
    model.eval()
    right = np.zeros(len(fractals.HEADS))
    for start in range(0, len(images), _BATCH):
        logits = heads(model(_normalise(images[start : start + _BATCH])))
        guesses = torch.stack([o.argmax(1) for o in logits], dim=1).numpy()
        right += (guesses == labels[start : start + _BATCH]).sum(0)
    return {head: round(float(share), 4) for head, share in zip(fractals.HEADS, right / len(images), strict=True)}


def _weights(model: nn.Module) -> bytes:
    """Returns the content of a safetensors file of the weights, float16, under timm's own keys."""
    return save({key: tensor.detach().half().contiguous() for key, tensor in model.state_dict().items()})


@command
def main(arguments: list[str] | None = None) -> None:
    """Pre-trains the backbone and writes its files."""
    default = Budget()
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.embedded.backbone",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of every draw (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=default.steps, help=f"optimiser steps of {_BATCH} images (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=default.images, help="different images to train on (default: %(default)s)"
    )
    parser.add_argument(
        "--validation", type=int, default=default.validation, help="images to validate on (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=None, help="end after this time at the latest; not reproducible"
    )
    parser.add_argument(
        "--threads", type=int, default=default.threads, help="of PyTorch, and to draw images (default: %(default)s)"
    )
    chosen = vars(parser.parse_args(arguments))
    out = chosen.pop("out")
    record = pretrain(out, Budget(**chosen))
    print(f"{out}: {out.stat().st_size} bytes, validation accuracy {record['provenance']['validation_accuracy']}")


if __name__ == "__main__":
    sys.exit(main())
