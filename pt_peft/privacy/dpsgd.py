r"""DP-SGD (Abadi et al. 2016, arXiv:1607.00133): clipped and noisy gradients in place of a batch's gradient.

    g = (sum_i min(1, C / ‖g_i‖) g_i + s C z) / B,    z ~ N(0, I)

over the images i of a batch, which holds each of the site's n images with probability B / n. g_i is the gradient of
image i's loss, with all trained tensors as one vector; B is ``batch_size`` however many images the batch holds, C is
``max_grad_norm`` and s ``noise_multiplier``.
"""

import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pt_peft.data.device_batches import DeviceSplits
from pt_peft.data.site_data import ImageSplit, drawn_batches
from pt_peft.experiment.privacy import SamplePrivacy
from pt_peft.privacy.draws import Draws

_logger = logging.getLogger(__name__)

GRADIENT_BYTES = 256 * 2**20
"""Most bytes that the gradients of single images take at a time."""

Logits = Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]
"""Computes logits float32 (B,K) of images float32 (B,3,S,S) in [0,1] with the module that is its second argument."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Computes the mean loss over images from logits float32 (B,K) and labels."""


def poisson_batches(
    split: ImageSplit,
    rate: float,
    steps: int,
    augment: tuple[str, ...],
    draws: Draws,
    on: DeviceSplits | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draws `steps` batches in which each image is with probability `rate`; some may be empty.

    Batches are as `pt_peft.data.site_data.batches` gives them. Augmentation is drawn as secretly as the images: if it
    were known, an image that is left out would show in how those after it are changed.
    """
    chosen = (np.flatnonzero(draws.uniform(len(split)) < rate) for _ in range(steps))
    return drawn_batches(split, chosen, seed=draws.seed(), augment=augment, on=on)


class PrivateGradients:
    """Sets the gradients of parameters to a batch's, with clipping and noise."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        sample: SamplePrivacy,
        batch_size: int,
        draws: Draws,
    ):
        """Takes what stays the same in all steps.

        Args:
            module: holds the parameters.
            parameters: those of `module` that train, by canonical key; nothing else gets a gradient.
            sample: the settings.
            batch_size: B.
            draws: where the noise comes from.
        """
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._module = module
        self._parameters = {names[id(parameter)]: parameter for parameter in parameters.values()}
        self._sample = sample
        self._batch_size = batch_size
        self._draws = draws
        values = sum(parameter.numel() for parameter in parameters.values())
        self._together = True
        # No more images at once than a step without privacy has in its forward pass.
        self._chunk = max(1, min(batch_size, GRADIENT_BYTES // (4 * values)))

    def __call__(self, logits: Logits, loss: Loss, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Sets each parameter's ``grad``.

        Args:
            logits: computes them.
            loss: computes the mean loss.
            images: float32 (B,3,S,S) on the parameters' device; B may be 0.
            labels: of the images, on the same device.
        """
        total = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for start in range(0, len(images), self._chunk):
            chunk = slice(start, start + self._chunk)
            for name, value in self.clipped_sum(logits, loss, images[chunk], labels[chunk]).items():
                total[name] += value
        for name, parameter in self._parameters.items():
            deviation = self._sample.noise_multiplier * self._sample.max_grad_norm
            noise = torch.as_tensor(self._draws.normal(parameter.numel()) * deviation).view(parameter.shape)
            parameter.grad = (total[name] + noise.to(total[name])) / self._batch_size

    def clipped_sum(
        self, logits: Logits, loss: Loss, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sums the images' clipped gradients, by the module's own parameter names.

        An image whose gradient is not finite counts as zero: its presence would show otherwise.
        """
        gradients = self.per_image(logits, loss, images, labels)
        squares = [value.flatten(1).square().sum(dim=1) for value in gradients.values()]
        norms = sum(squares[1:], squares[0]).sqrt()
        scales = (self._sample.max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        fine = norms.isfinite()
        return {name: torch.einsum("i,i...->...", scales[fine], value[fine]) for name, value in gradients.items()}

    def per_image(
        self, logits: Logits, loss: Loss, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Gradients (B, …) of each image's own loss, by the module's own parameter names."""

        def loss_of(tensors: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            def module(batch: torch.Tensor) -> torch.Tensor:
                return functional_call(self._module, tensors, (batch,))

            return loss(logits(image.unsqueeze(0), module), label.unsqueeze(0))

        tensors = {name: parameter.detach() for name, parameter in self._parameters.items()}
        # Fused attention has no rule for vmap on every device; plain attention consists of operations that have.
        with sdpa_kernel(SDPBackend.MATH):
            if self._together:
                try:
                    return vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="different")(tensors, images, labels)
                except RuntimeError as error:  # some tuners have operations that torch.func cannot take
                    _logger.warning("gradients are taken one image at a time: %s", error)
                    self._together = False
            return self._one_by_one(logits, loss, images, labels)

    def _one_by_one(
        self, logits: Logits, loss: Loss, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        parameters = list(self._parameters.values())
        each = [
            torch.autograd.grad(
                loss(logits(images[index : index + 1], self._module), labels[index : index + 1]), parameters
            )
            for index in range(len(images))
        ]
        return {
            name: torch.stack(values) for name, values in zip(self._parameters, zip(*each, strict=True), strict=True)
        }
