"""What a user of PyTorch, timm and HF PEFT trains at each site, without pt_peft. The plain loop and stock FLARE run it.

The task's folder is that of `benchmark.speed.bare`, with ``<site>.val.npz`` beside each ``<site>.npz``, and two more
fields in ``work.json``: ``learning_rate`` and ``head_learning_rate``.
"""

import math

import torch

from benchmark.speed.bare import Bare, scaled
from benchmark.speed.marks import mark

BATCH = 256
"""Images, in evaluation."""


class Learner(Bare):
    """Trains and evaluates the model of a task on a site's images."""

    def train_round(self, site: str, images: torch.Tensor, labels: torch.Tensor, number: int) -> float:
        """Trains one epoch by AdamW, with the cosine of all rounds and the classes weighed by the site's own counts.

        Args:
            site: its name.
            images: uint8 (N,3,S,S).
            labels: int64 (N,).
            number: of the round, from 0.

        Returns:
            The mean loss.
        """
        mark("begins", site)
        counts = torch.bincount(labels, minlength=self.work["classes"])
        weights = torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)
        rates = {True: self.work["head_learning_rate"], False: self.work["learning_rate"]}
        groups = [
            {"params": [value for name, value in self.trained.items() if name.startswith("head.") == head], "lr": rate}
            for head, rate in rates.items()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        steps = math.ceil(len(images) / self.work["batch_size"])
        losses: list[torch.Tensor] = []
        self.model.train()
        for index, chosen in enumerate(torch.randperm(len(images)).split(self.work["batch_size"])):
            share = (number * steps + index) / (self.work["rounds"] * steps)
            for group, peak in zip(optimizer.param_groups, rates.values(), strict=True):
                group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * share))
            losses.append(self.step(images[chosen], labels[chosen], optimizer, weights))
        mean = float(torch.stack(losses).mean())
        mark("ends", site)
        return mean

    @torch.inference_mode()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 (N,K) of images uint8 (N,3,S,S)."""
        self.model.eval()
        return torch.cat([self.model(scaled(batch)) for batch in images.split(BATCH)])

    def balanced_accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """The mean recall of the classes that `labels` have."""
        right = self.logits(images).argmax(dim=1) == labels
        return float(torch.stack([right[labels == one].float().mean() for one in labels.unique()]).mean())
