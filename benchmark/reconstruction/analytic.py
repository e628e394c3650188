r"""Attacks in closed form on the gradients of the patch embedding, y_n = W x_n + b + e_n for the n-th patch x_n.

With δ_n the gradient of the loss by y_n, and sums over the patches of all images of a batch,

    ∂L/∂W = Σ δ_n x_nᵀ  (d, 3p²),    ∂L/∂b = Σ δ_n  (d,),    ∂L/∂e_n = δ_n, over the images of the batch  (N, d)
"""

import numpy as np

from benchmark.reconstruction.attacker import Attacker, Evidence, Floats
from pt_peft.exchange.tensors import Tensors

_WEIGHT, _BIAS, _POSITIONS = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"
_ROWS = 16
"""Rows that are tried one by one."""
_LEAST = 1e-7
"""Singular values below this share of the largest one are rounding of float32."""


def embedding_rows(attacker: Attacker, evidence: Evidence) -> Floats | None:
    """Divides a row of ∂L/∂W by the same entry of ∂L/∂b, which is the patch where a single one has an effect on it.

    Zhu and Blaschko 2021 (R-GAP, arXiv:2010.07733), Fowl et al. 2022 (arXiv:2110.13057). The first candidate takes all
    rows together, by least squares; others are the rows of the largest entries of ∂L/∂b. Where an image has several
    patches, what is found is repeated.

    Returns:
        Candidates float64 (M,3,S,S) in [0,1]; None if weight and bias of the embedding are not in the evidence.
    """
    if (found := _embedding(attacker, evidence.gradients)) is None:
        return None
    weight, bias = found
    strongest = np.argsort(-np.abs(bias))[:_ROWS]
    strongest = strongest[bias[strongest] != 0]
    if not len(strongest):
        return None
    together = bias @ weight / (bias @ bias)
    patches = np.vstack([together, weight[strongest] / bias[strongest, None]])
    return _images(attacker, evidence, np.concatenate([attacker.assembled(patch[None]) for patch in patches]))


def embedding_positions(attacker: Attacker, evidence: Evidence) -> Floats | None:
    """Solves ∂L/∂W = Δᵀ X for the patches X, with Δ read from the gradient of the position embedding.

    Lu et al. 2022 (APRIL, arXiv:2112.14087). One image is found where the embedding is as wide as it has patches; of
    several a mixture.

    Returns:
        One candidate float64 (1,3,S,S) in [0,1]; None if one of the gradients is not in the evidence.
    """
    positions = evidence.gradients.get(_POSITIONS)
    if positions is None or (found := _embedding(attacker, evidence.gradients)) is None:
        return None
    layer = attacker.patches
    assert layer is not None
    count = (attacker.side // layer.kernel_size[0]) * (attacker.side // layer.kernel_size[1])
    if positions.ndim != 3 or positions.shape[1] < count or not positions.any():
        return None
    deltas = positions[0, -count:].astype(np.float64)  # class and register tokens come first
    solved = np.linalg.lstsq(deltas.T, found[0], rcond=_LEAST)[0]
    return _images(attacker, evidence, attacker.assembled(solved))


def embedding_sources(attacker: Attacker, evidence: Evidence) -> Floats | None:
    """Separates the rows of ∂L/∂W, mixtures of the batch's images, into independent sources by FastICA.

    Kariyappa et al. 2023 (Cocktail Party Attack, arXiv:2209.05578). The direction w that takes a source out of the rows
    takes its brightness and contrast out of the bias: x = wᵀ ∂L/∂W / wᵀ ∂L/∂b. It is sought in the differences of
    neighbouring pixels, which depend less on one another than images do.

    Returns:
        Candidates float64 (M,3,S,S) in [0,1], one an image; None if weight and bias of an embedding of whole images are
        not in the evidence, or if the number of images is not known to be from 2 to the embedding's width.
    """
    found, count, layer = _embedding(attacker, evidence.gradients), attacker.seen.num_samples, attacker.patches
    if found is None or layer is None or count is None or layer.kernel_size != (attacker.side, attacker.side):
        return None
    weight, bias = found
    if not 2 <= count <= len(weight):
        return None
    edges = _edges(weight.reshape(len(weight), 3, attacker.side, attacker.side))
    left, values, right = np.linalg.svd(edges, full_matrices=False)
    if values[count - 1] <= _LEAST * values[0]:
        return None
    rotation = _fast_ica(right[:count] * np.sqrt(edges.shape[1]))
    directions = rotation @ (left[:, :count] / values[:count]).T
    shares = directions @ bias
    if (np.abs(shares) <= _LEAST * np.abs(shares).max()).any():
        return None
    images = (directions @ weight) / shares[:, None]
    return _images(attacker, evidence, np.concatenate([attacker.assembled(image[None]) for image in images]))


def _embedding(attacker: Attacker, gradients: Tensors) -> tuple[Floats, Floats] | None:
    """Gradients of the embedding's weight, float64 (d, 3p²), and bias (d,)."""
    weight, bias = gradients.get(_WEIGHT), gradients.get(_BIAS)
    if weight is None or bias is None or attacker.patches is None:
        return None
    return weight.reshape(len(weight), -1).astype(np.float64), bias.astype(np.float64)


def _edges(images: Floats) -> Floats:
    """Differences of neighbouring pixels of images (M,3,S,S), float64 (M,T), with a mean of zero."""
    across, down = np.diff(images, axis=3), np.diff(images, axis=2)
    edges = np.concatenate([across.reshape(len(images), -1), down.reshape(len(images), -1)], axis=1)
    return edges - edges.mean(axis=1, keepdims=True)


def _images(attacker: Attacker, evidence: Evidence, normalised: Floats) -> Floats:
    return attacker.pixels(normalised if evidence.exact else attacker.standardised(normalised))


def _fast_ica(white: Floats, iterations: int = 200) -> Floats:
    """The rotation (n,n) of white signals (n,T) that makes them independent (Hyvärinen 1999, symmetric, tanh)."""
    generator = np.random.default_rng(0)
    rotation = _orthogonal(generator.standard_normal((len(white), len(white))))
    for _ in range(iterations):
        squashed = np.tanh(rotation @ white)
        slope = (1 - squashed**2).mean(axis=1)
        turned = _orthogonal(squashed @ white.T / white.shape[1] - slope[:, None] * rotation)
        still = np.abs(np.abs((turned * rotation).sum(axis=1)) - 1).max() < 1e-10
        rotation = turned
        if still:
            break
    return rotation


def _orthogonal(matrix: Floats) -> Floats:
    left, _, right = np.linalg.svd(matrix)
    return left @ right
