"""Finds images by optimisation, as Geiping et al. 2020 (arXiv:2003.14053) do."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

START_STD, RATE, SMOOTHNESS = 0.1, 0.03, 0.1
"""Of the random start and of the first step in units of normalised pixels; weight of total variation in the loss.
Chosen on one generated image of 32 pixels, ``full`` with its exact gradient, embedded backbone."""


@dataclass(frozen=True)
class Budget:
    """Where a search ends, whichever comes first. A bound of time makes results depend on the machine."""

    iterations: int
    seconds: float
    """Of wall time, for one attack on one piece of evidence."""


def search(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    box: tuple[torch.Tensor, torch.Tensor],
    budget: Budget,
) -> tuple[torch.Tensor, int]:
    """Looks for images by Adam with a cosine schedule; the paper's steps of signs left more noise here.

    Args:
        loss_of: maps images to a scalar; total variation is added to it.
        start: where to begin, float32 (M,3,S,S).
        box: normalised black and white, each (1,3,1,1); images stay between.
        budget: when to stop.

    Returns:
        The normalised images (M,3,S,S) of the least loss, and the number of iterations.
    """
    deadline = time.monotonic() + budget.seconds
    images = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.iterations)
    best, least, done = start, float("inf"), 0
    while done < budget.iterations and time.monotonic() < deadline:
        loss = loss_of(images) + SMOOTHNESS * total_variation(images)
        if (value := loss.item()) < least:
            best, least = images.detach().clone(), value
        (images.grad,) = torch.autograd.grad(loss, images)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            images.copy_(torch.minimum(torch.maximum(images, box[0]), box[1]))
        done += 1
    return best, done


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """The mean absolute difference of neighbouring pixels of images (M,3,S,S)."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
