"""The reference work in bare PyTorch, timm and HF PEFT, without pt_peft. Plain, stock FLARE and Flower run it.

The work's folder holds ``weights.safetensors`` (the backbone), ``<site>.npz`` (``images`` uint8 (N,3,S,S), ``labels``
int64 (N,)) and ``work.json`` (see `benchmark.speed.work`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import cross_entropy

from benchmark.speed.marks import mark

State = dict[str, torch.Tensor]
"""Trained tensors by name."""
Hook = Callable[..., Any]
"""A forward hook of torch, before or after a module."""


class Bare:
    """The model and the sites' images.

    Attributes:
        work: the content of ``work.json``.
        model: a timm ViT with LoRA and prompts.
        trained: the tensors that get gradients, by name.
    """

    def __init__(self, folder: Path, threads: int):
        """Builds the model of the work in `folder`, on `threads` threads."""
        self.work: dict[str, Any] = json.loads((folder / "work.json").read_text())
        self._folder = folder
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        size, prompts = self.work["image_size"], self.work["prompts"]
        created = timm.create_model(self.work["model"], img_size=size, num_classes=self.work["classes"])
        model = cast(VisionTransformer, created)
        model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
        if self.work["rank"]:
            first = len(model.blocks) - (self.work["last_blocks"] or len(model.blocks))
            targets = [f"blocks.{index}.attn.qkv" for index in range(first, len(model.blocks))]
            config = LoraConfig(r=self.work["rank"], lora_alpha=self.work["lora_alpha"], target_modules=targets)
            inject_adapter_in_model(config, model)
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or name.startswith("head."))
        if prompts:
            values = nn.Parameter(torch.randn(len(model.blocks), prompts, model.embed_dim) * 0.02)
            model.register_parameter("prompts", values)
            for index, block in enumerate(model.blocks):
                block.register_forward_pre_hook(_insert(values, index))
                block.register_forward_hook(_remove(prompts))
        self.model = model
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def state(self) -> State:
        """Copies the trained tensors."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the trained tensors to the values in `state`."""
        with torch.no_grad():
            for name, value in state.items():
                self.trained[name].copy_(value)

    def images(self, site: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the images of a site, uint8 (N,3,S,S), and their labels, int64 (N,)."""
        with np.load(self._folder / f"{site}.npz") as file:
            return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])

    def train(self, site: str, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Trains one local epoch. Returns the mean loss."""
        mark("begins", site)
        optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-3, weight_decay=0.0)
        self.model.train()
        losses = [
            self.step(images[chosen], labels[chosen], optimizer)
            for chosen in torch.randperm(len(images)).split(self.work["batch_size"])
        ]
        mean = float(torch.stack(losses).mean())
        mark("ends", site)
        return mean

    def step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Trains on a batch of images uint8 (B,3,S,S), with `weights` of the classes. Returns the loss."""
        batch = scaled(images)
        if self.work["augment"]:
            batch = torch.stack([_moved(image) for image in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.work["precision"] == "bfloat16"):
            logits = self.model(batch)
        loss = cross_entropy(logits.float(), labels, weight=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Images uint8 (B,3,S,S) as the backbone takes them: float32 in -1 … 1."""
    return images.float().div_(255).sub_(0.5).div_(0.5)


def _moved(image: torch.Tensor) -> torch.Tensor:
    """`image` (3,S,S), mirrored or not and turned by right angles, at random."""
    turns, mirrored = (int(torch.randint(bound, ())) for bound in (4, 2))
    return torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))


def _insert(prompts: nn.Parameter, index: int) -> Hook:
    def hook(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        tokens = inputs[0]
        own = prompts[index].expand(len(tokens), -1, -1)
        return (torch.cat((tokens[:, :1], own, tokens[:, 1:]), dim=1), *inputs[1:])

    return hook


def _remove(count: int) -> Hook:
    def hook(block: nn.Module, inputs: tuple[torch.Tensor, ...], tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((tokens[:, :1], tokens[:, 1 + count :]), dim=1)

    return hook
