"""A bare training loop for a GPU as an expert writes it in torch, timm and HF PEFT, with nothing of pt_peft.

The images lie on the device as uint8. A step never waits for the device: batches are drawn, augmented and normalised
there, losses stay there until the round ends, and AdamW is fused.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import timm
import torch
from peft import LoraConfig, inject_adapter_in_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import cross_entropy

State = dict[str, torch.Tensor]
"""Trained tensors by name, on the CPU."""


class PlainLoop:
    """A model that trains on images which are on its device.

    Attributes:
        model: a timm ViT, with LoRA and prompts if they were asked for.
        trained: the tensors that get gradients, by name.
    """

    def __init__(
        self,
        backbone: Mapping[str, torch.Tensor],
        name: str,
        kwargs: Mapping[str, Any],
        classes: int,
        device: torch.device,
        *,
        rank: int = 0,
        alpha: int = 16,
        prompts: int = 0,
        bfloat16: bool = False,
    ):
        """Builds the model on `device`.

        Args:
            backbone: the weights, without a head.
            name: timm's name of the architecture.
            kwargs: of ``timm.create_model``, such as ``img_size``.
            classes: number of classes.
            device: where it computes.
            rank: of LoRA on each qkv; 0 for none.
            alpha: of LoRA.
            prompts: in each block; 0 for none. With neither LoRA nor prompts all tensors train.
            bfloat16: whether the forward pass is under autocast.
        """
        self._device, self._bfloat16 = device, bfloat16
        with device:  # random values are drawn there, which takes no time
            model = cast(VisionTransformer, timm.create_model(name, num_classes=classes, **kwargs))
        model.load_state_dict(backbone, strict=False)
        if rank:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=["qkv"]), model)
        if rank or prompts:
            for key, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in key or key.startswith("head."))
        if prompts:
            _add_prompts(model, prompts)
        self.model = model.to(device)
        self.trained = {key: one for key, one in model.named_parameters() if one.requires_grad}

    def state(self) -> State:
        """Copies the trained tensors to the CPU."""
        return {key: parameter.detach().to("cpu", copy=True) for key, parameter in self.trained.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the trained tensors to the values in `state`."""
        with torch.no_grad():
            for key, value in state.items():
                self.trained[key].copy_(value, non_blocking=True)

    def train(
        self, state: State, images: torch.Tensor, labels: torch.Tensor, batch_size: int, *, augment: bool = True
    ) -> tuple[State, float]:
        """Trains one epoch from `state` on. Returns the trained tensors and the mean loss.

        Args:
            state: as `state` returns it.
            images: uint8 (N,3,S,S), on the device.
            labels: int64 (N,), on the device.
            batch_size: images in a step.
            augment: whether each image is mirrored along each axis or not and turned by right angles, at random.
        """
        self.load(state)
        self.model.train()
        fused = self._device.type == "cuda"
        optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-3, weight_decay=0.0, fused=fused)
        losses: list[torch.Tensor] = []
        for chosen in torch.randperm(len(images), device=self._device).split(batch_size):
            batch = images[chosen]
            logits = self._logits(_moved(batch) if augment else batch)
            loss = cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        return self.state(), mean

    @torch.inference_mode()
    def predict(self, state: State, images: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Logits float32 (N,K), on the CPU, of the model with `state` on `images` uint8 (N,3,S,S)."""
        self.load(state)
        self.model.eval()
        return torch.cat([self._logits(batch).float() for batch in images.split(batch_size)]).cpu()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            return self.model(images.float().div_(127.5).sub_(1.0))


def _moved(images: torch.Tensor) -> torch.Tensor:
    """`images` (B,3,S,S), each mirrored and turned at random."""
    for axis in (-1, -2):
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(axis), images)
    turns = torch.randint(4, (len(images), 1, 1, 1), device=images.device)
    half = torch.where(turns >= 2, images.flip((-2, -1)), images)
    return torch.where(turns % 2 == 1, half.rot90(1, (-2, -1)), half)


def _add_prompts(model: VisionTransformer, count: int) -> None:
    """Lets each block see `count` prompts of its own behind the class token (VPT-deep)."""
    device = next(model.parameters()).device
    prompts = nn.Parameter(torch.randn(len(model.blocks), count, model.embed_dim, device=device) * 0.02)
    model.register_parameter("prompts", prompts)

    def insert(index: int) -> Callable[..., Any]:
        def hook(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            tokens = inputs[0]
            own = prompts[index].to(tokens.dtype).expand(len(tokens), -1, -1)
            # The last block's prompts are where this one's go.
            return (torch.cat((tokens[:, :1], own, tokens[:, 1 + (count if index else 0) :]), dim=1), *inputs[1:])

        return hook

    def remove(block: nn.Module, inputs: tuple[torch.Tensor, ...], tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((tokens[:, :1], tokens[:, 1 + count :]), dim=1)

    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(insert(index))
    model.blocks[-1].register_forward_hook(remove)
