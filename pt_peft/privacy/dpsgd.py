r"""DP-SGD (Abadi et al. 2016, arXiv:1607.00133): what takes the place of a batch's gradient.

    g = (sum_i min(1, C / ‖g_i‖) g_i + s C z) / B,    z ~ N(0, I)

over the images i of a batch in which each of the site's n images is with probability B / n; g_i is the gradient of image i's
loss, all tensors that train as one vector, B is ``batch_size`` whatever the batch came to hold, C ``max_grad_norm`` and s
``noise_multiplier``.
"""

import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pt_peft.data.site_data import Split, drawn_batches
from pt_peft.experiment.privacy import SamplePrivacy
from pt_peft.privacy.draws import Draws

_logger = logging.getLogger(__name__)

GRADIENT_BYTES = 256 * 2**20
"""The most that single images' gradients take at a time."""

Logits = Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]
"""Images float32 (B,3,S,S) in [0,1] through a module, to logits float32 (B,K)."""


def poisson_batches(
    split: Split, rate: float, steps: int, augment: tuple[str, ...], draws: Draws
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches as `pt_peft.data.site_data.batches` gives them, each image in each of them with probability `rate`: some
    may be empty. What augments an image is as secret as the draw, as with it known an image that is left out would show in the
    changes of those that come after it.
    """
    chosen = (np.flatnonzero(draws.uniform(len(split)) < rate) for _ in range(steps))
    return drawn_batches(split, chosen, seed=draws.seed(), augment=augment)


class PrivateGradients:
    """Gives parameters the gradient of a batch with clipping and noise."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        sample: SamplePrivacy,
        batch_size: int,
        draws: Draws,
    ):
        """Args:
        parameters: of `module`, those that train, by canonical key: nothing else gets a gradient.
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

    def __call__(self, logits: Logits, loss: Callable, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Sets each parameter's ``grad``.

        Args:
            loss: of logits and labels, a mean over images.
            images, labels: on the parameters' device; may be none.
        """
        total = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for start in range(0, len(images), self._chunk):
            chunk = slice(start, start + self._chunk)
            for name, value in self.clipped_sum(logits, loss, images[chunk], labels[chunk]).items():
                total[name] += value
        for name, parameter in self._parameters.items():
            deviation = self._sample.noise_multiplier * self._sample.max_grad_norm
            noise = torch.from_numpy(self._draws.normal(parameter.numel()) * deviation).view(parameter.shape)
            parameter.grad = (total[name] + noise.to(total[name])) / self._batch_size

    def clipped_sum(
        self, logits: Logits, loss: Callable, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum of the images' clipped gradients by the module's own parameter names. An image whose gradient is not finite
        counts as none: else its being there would show.
        """
        gradients = self.per_image(logits, loss, images, labels)
        squares = sum(value.flatten(1).square().sum(dim=1) for value in gradients.values())
        norms = squares.sqrt()
        scales = (self._sample.max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        fine = norms.isfinite()
        return {name: torch.einsum("i,i...->...", scales[fine], value[fine]) for name, value in gradients.items()}

    def per_image(
        self, logits: Logits, loss: Callable, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Gradients (B, …) of the loss of each image alone, by the module's own parameter names."""

        def loss_of(tensors: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            def module(batch: torch.Tensor) -> torch.Tensor:
                return functional_call(self._module, tensors, (batch,))

            return loss(logits(image.unsqueeze(0), module), label.unsqueeze(0))

        tensors = {name: parameter.detach() for name, parameter in self._parameters.items()}
        # Fused attention has no rule for a batch of batches on every device; plain attention is made of what has.
        with sdpa_kernel(SDPBackend.MATH):
            if self._together:
                try:
                    return vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="different")(tensors, images, labels)
                except RuntimeError as error:  # some tuners have operations that torch.func cannot take
                    _logger.warning("gradients are taken one image at a time: %s", error)
                    self._together = False
            return self._one_by_one(logits, loss, images, labels)

    def _one_by_one(
        self, logits: Logits, loss: Callable, images: torch.Tensor, labels: torch.Tensor
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
