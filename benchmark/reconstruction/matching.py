"""Attacks that search for images which would have left the same trace."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmark.reconstruction.attacker import Attacker, Evidence, Floats
from pt_peft.exchange.lora_pairs import pairs
from pt_peft.training.imbalance import training_loss

_RIDGE = 1e-4
"""Added to the tokens' Gram matrix, whose mean diagonal is near 1, where they may be dependent."""


def labels(attacker: Attacker, evidence: Evidence) -> np.ndarray:
    """Infers labels of `attacker.images` images from the gradient of the head's bias (iDLG, Zhao et al. 2020).

    The gradient of a class's logit is p - 1 for an image of the class, else p > 0: classes below zero are there, and
    the further the more often. Without a bias in the evidence, classes take turns.

    Returns:
        As `pt_peft.data.site_data.ImageSplit.labels`: int64 (M,), or uint8 (M,K) for ``multilabel``.
    """
    experiment, count = attacker.seen.experiment, attacker.images
    classes = len(experiment.data.classes)
    bias = evidence.gradients.get(f"{attacker.head}.bias")
    if experiment.data.task == "multilabel":
        present = np.arange(classes) % 2 == 0 if bias is None else bias < 0
        return np.tile(present.astype(np.uint8), (count, 1))
    if bias is None:
        return np.arange(count) % classes
    if count == 1:
        return np.array([int(bias.argmin())])
    # A class's count is its mean probability less the gradient; at the start probabilities are nearly even.
    step = bias.astype(np.float64) if evidence.exact else bias / max(np.abs(bias).max(), 1e-30) / classes
    expected = count * np.clip(1 / classes - step, 0, None)
    expected *= count / expected.sum()
    found = np.floor(expected).astype(int)
    for label in np.argsort(found - expected, kind="stable")[: count - found.sum()]:
        found[label] += 1
    return np.repeat(np.arange(classes), found)


def gradient_matching(attacker: Attacker, evidence: Evidence) -> Floats | None:
    """Searches for images whose gradients point where the evidence does (Geiping et al. 2020, arXiv:2003.14053).

    The distance is 1 - cosine, a mean over the exchanged tensors, so that a small factor or prompt counts as the head
    does. LoRA's update B A counts as a tensor besides its factors: its first-order change is ∂B A + B ∂A. At the start
    B is zero and so is the gradient of A; after several steps both are matched halfway. Against an update of AdamW the
    gradients are squashed as its first step does.

    Returns:
        Images float64 (M,3,S,S) in [0,1]; None if no gradient is other than zero.
    """
    targets = _with_products({key: torch.tensor(value) for key, value in evidence.gradients.items()}, attacker)
    targets = {key: value for key, value in targets.items() if value.any()}
    trained = {key: attacker.model.trained[key] for key in evidence.gradients}
    if not targets:
        return None
    attacker.model.activate(trained.keys())
    inferred = labels(attacker, evidence)
    loss_of, wanted = training_loss(attacker.seen.experiment, inferred, torch.device("cpu")), torch.as_tensor(inferred)

    def distance(images: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = loss_of(attacker.module(images).float(), wanted)
            found = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
        gradients = _with_products(dict(zip(trained, found, strict=True)), attacker)
        return torch.stack([_distance(gradients[key], value, evidence.exact) for key, value in targets.items()]).mean()

    return attacker.search(distance, attacker.images)


def head_features(attacker: Attacker, evidence: Evidence) -> Floats | None:
    """Reads pooled features from the head's rows, and searches for images that have them.

    A row of the head's gradient is Σ (p - y) f(x), the same entry of its bias Σ (p - y). Their quotient is f(x) of one
    image, and of several leans to the mean over those of the class. Only the direction is matched.

    Returns:
        One image for each of at most `attacker.images` classes, float64 (M,3,S,S) in [0,1]; None if the head's weight
        is not in the evidence.
    """
    weight = evidence.gradients.get(f"{attacker.head}.weight")
    if weight is None or not weight.any():
        return None
    bias = evidence.gradients.get(f"{attacker.head}.bias")
    if bias is None:
        bias = -np.linalg.norm(weight, axis=1)
    classes = np.argsort(bias, kind="stable")[: attacker.images]
    classes = classes[(bias[classes] < 0) | (np.arange(len(classes)) == 0)]
    features = torch.tensor(weight[classes] * np.sign(bias[classes])[:, None])
    attacker.model.activate(frozenset())

    def distance(images: torch.Tensor) -> torch.Tensor:
        module = attacker.module
        pooled = module.forward_head(module.forward_features(images), pre_logits=True)
        return 1 - nn.functional.cosine_similarity(pooled.float(), features).mean()

    return attacker.search(distance, len(classes))


def lora_input_span(attacker: Attacker, evidence: Evidence) -> Floats | None:
    """Searches for an image whose tokens span the rows of the gradients of LoRA's A.

    ∂L/∂A = Σ (Bᵀ δ_n) z_nᵀ, with z_n the layer's input: every row is a combination of the image's tokens. That is no
    constraint where there are as many tokens as the layer is wide, so it is tried for one image alone.

    Returns:
        One image float64 (1,3,S,S) in [0,1]; None if the evidence says nothing of the kind.
    """
    rows = {
        pair.layer: torch.tensor(evidence.gradients[pair.a])
        for pair in pairs(evidence.gradients)
        if evidence.gradients[pair.a].any()
    }
    if attacker.images != 1 or not rows:
        return None
    attacker.model.activate(frozenset())
    layers = dict(attacker.module.named_modules())
    inputs: dict[str, torch.Tensor] = {}

    def keep(layer: str):
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[layer] = args[0].flatten(0, -2)

        return hook

    hooks = [layers[layer].register_forward_pre_hook(keep(layer)) for layer in rows]
    try:
        with torch.no_grad():
            attacker.module(torch.zeros(1, 3, attacker.side, attacker.side))
        if all(len(tokens) >= tokens.shape[1] for tokens in inputs.values()):
            return None

        def outside(images: torch.Tensor) -> torch.Tensor:
            attacker.module(images)
            return torch.stack([_outside(rows[layer], inputs[layer]) for layer in rows]).mean()

        return attacker.search(outside, 1)
    finally:
        for hook in hooks:
            hook.remove()


def _outside(rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The share of `rows` (r,d), by squares, that is no combination of `tokens` (t,d)."""
    unit = tokens / tokens.square().mean().sqrt() / tokens.shape[1] ** 0.5
    gram = unit @ unit.T + _RIDGE * torch.eye(len(unit))
    within = unit.T @ torch.linalg.solve(gram, unit @ rows.T)
    return 1 - within.square().sum() / rows.square().sum()


def _distance(gradient: torch.Tensor, target: torch.Tensor, exact: bool) -> torch.Tensor:
    if not exact:
        gradient = gradient / (gradient.abs() + gradient.abs().mean().detach() + 1e-30)
    return 1 - nn.functional.cosine_similarity(gradient.flatten(), target.flatten(), dim=0, eps=1e-20)


def _with_products(gradients: Mapping[str, torch.Tensor], attacker: Attacker) -> dict[str, torch.Tensor]:
    """`gradients` and, under the layer's path, the first-order changes of LoRA's products B A."""
    whole = dict(gradients)
    for pair in pairs(gradients):
        a, b = (attacker.model.trained[key].detach() for key in (pair.a, pair.b))
        whole[pair.layer] = gradients[pair.b] @ a + b @ gradients[pair.a]
    return whole
