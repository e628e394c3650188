"""Masked autoencoder: He et al. 2022, Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from pt_peft.data.site_data import ImageSplit, batches
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.backbone import create_backbone
from pt_peft.model.model_input import Normalisation, autocast
from pt_peft.model.precision import choose_attention, resolved_precision
from pt_peft.model.vit import ViT
from pt_peft.pretraining.recipe import Recipe
from pt_peft.seeds import derive_seed
from pt_peft.torch_random import cpu_generator_restored, seed_torch
from pt_peft.training.schedule import share_of_peak

DECODER_DEPTH = 4
"""Blocks; the paper has 8, and finds one to be nearly as good for fine-tuning (its table 1a)."""
HEAD_WIDTH = 32
"""Width of an attention head of the decoder, as in the paper."""
WARM_UP = 0.05
"""Share of the steps in which the step size rises, as in the paper (40 of 800 epochs)."""
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.05
"""AdamW's, from the paper's table 8."""


class MaskedAutoencoder(nn.Module):
    """A ViT that sees some of an image's patches, and a light decoder that predicts the pixels of the others from them.

    Shapes are given for B images, P prefix tokens (class and register tokens) and L patches of p x p pixels, of which K
    are seen.
    """

    positions: torch.Tensor

    def __init__(self, encoder: ViT, mask_ratio: float):
        """Adds a decoder to `encoder`.

        Args:
            encoder: a plain timm ViT.
            mask_ratio: share of the patches that are not seen.

        Raises:
            UserError: if `encoder` is no plain timm ViT, or `mask_ratio` masks all patches or none.
        """
        super().__init__()
        _check(encoder)
        patches: int = encoder.patch_embed.num_patches
        self.kept = round(patches * (1 - mask_ratio))
        if not 0 < self.kept < patches:
            raise UserError(
                f"--mask-ratio is {mask_ratio}, which leaves {self.kept} of {patches} patches to see; some, but not "
                "all, would be right."
            )
        self.encoder = encoder
        self.patch_size: tuple[int, int] = encoder.patch_embed.patch_size
        # 512 for ViT-B, as in the paper.
        heads = max(1, round(encoder.embed_dim * 2 / 3 / HEAD_WIDTH))
        width = heads * HEAD_WIDTH
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        rows, columns = encoder.patch_embed.grid_size
        positions = sine_cosine_positions(rows, columns, width)
        prefix = torch.zeros(encoder.num_prefix_tokens, width)
        self.register_buffer("positions", torch.cat([prefix, positions]), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(DECODER_DEPTH)))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, 3 * math.prod(self.patch_size))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The loss: mean squared error over the masked patches.

        The pixels of each patch are normalised to mean 0 and variance 1.

        Args:
            images: float32 (B,3,S,S), normalised.
            noise: uniform (B,L); the K patches of an image with the least noise are seen.
        """
        order = noise.argsort(dim=1)
        predicted = self.decode(self.encode(images, order[:, : self.kept]), order)
        masked = order[:, self.kept :, None]
        target = self.patchify(images)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        target = target.gather(1, masked.expand(-1, -1, target.shape[-1]))
        predicted = predicted.float().gather(1, masked.expand(-1, -1, predicted.shape[-1]))
        return (predicted - target).square().mean()

    def encode(self, images: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Encodes the patches that are seen.

        Args:
            images: float32 (B,3,S,S), normalised.
            seen: places (B,K) of the patches.

        Returns:
            Tokens (B,P+K,d).
        """
        encoder = self.encoder
        # timm drops patches between their position embeddings and the blocks: here, those that are not seen.
        drops, encoder.patch_drop = encoder.patch_drop, _Keep(seen, encoder.num_prefix_tokens)
        try:
            tokens = encoder.forward_features(images)
        finally:
            encoder.patch_drop = drops
        return encoder.fc_norm(tokens)  # timm's norm, if it pools by the average

    def decode(self, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Predicts the pixels of all patches.

        Args:
            tokens: (B,P+K,d), as `encode` returns them.
            order: all places (B,L), those of the patches that were seen first.

        Returns:
            Pixels (B,L,3pp), patches in their places.
        """
        tokens = self.embed(tokens)
        prefix, seen = tokens.tensor_split([self.encoder.num_prefix_tokens], dim=1)
        unseen = self.mask_token.to(seen.dtype).expand(len(seen), order.shape[1] - self.kept, -1)
        patches = torch.cat([seen, unseen], dim=1)
        patches = patches.gather(1, order.argsort(dim=1)[:, :, None].expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([prefix, patches], dim=1) + self.positions
        return self.predict(self.norm(self.blocks(tokens)))[:, self.encoder.num_prefix_tokens :]

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels of each patch, (B,L,3pp), of `images` (B,3,S,S). Patches are in the order of the encoder's tokens."""
        (high, wide), (rows, columns) = self.patch_size, self.encoder.patch_embed.grid_size
        images = images[:, :, : rows * high, : columns * wide]  # the rest at the border is in no patch
        patches = images.reshape(*images.shape[:2], rows, high, columns, wide)
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class _Keep(nn.Module):
    """Keeps the prefix tokens, and the patch tokens at the places (B,K) `seen`."""

    def __init__(self, seen: torch.Tensor, prefix: int):
        super().__init__()
        self.seen, self.prefix = seen, prefix

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        prefix, patches = tokens.tensor_split([self.prefix], dim=1)
        patches = patches.gather(1, self.seen[:, :, None].expand(-1, -1, patches.shape[-1]))
        return torch.cat([prefix, patches], dim=1)


def sine_cosine_positions(rows: int, columns: int, width: int) -> torch.Tensor:
    """Fixed embeddings of the places of a grid.

    Sine and cosine of the row are in one half, those of the column in the other, at width / 4 frequencies from 1 to
    1/10000.

    Args:
        rows: of the grid.
        columns: of the grid.
        width: of an embedding, a multiple of four.

    Returns:
        float32 (rows · columns, width).
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.cartesian_prod(torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64))
    angles = places[:, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1).float()


def train_masked_autoencoder(
    experiment: Experiment,
    recipe: Recipe,
    weights: Path,
    split: ImageSplit,
    device: torch.device,
    on_step: Callable[[torch.Tensor], None],
) -> ViT:
    """Trains a backbone as a masked autoencoder; labels are not used.

    Args:
        experiment: its backbone, augmentation, precision and seed.
        recipe: the options.
        weights: where the backbone starts.
        split: the images.
        device: where the model computes.
        on_step: called with the loss of each step.

    Returns:
        The backbone.

    Raises:
        UserError: if the backbone is no plain ViT.
    """
    seed, backbone = experiment.seed, experiment.backbone
    with cpu_generator_restored():
        seed_torch(derive_seed(seed, "backbone"))
        encoder = create_backbone(backbone, 1, weights)
        seed_torch(derive_seed(seed, "pretrain decoder"))
        model = MaskedAutoencoder(encoder, recipe.mask_ratio).to(device).train()
        normalise = Normalisation(backbone).to(device)
        optimizer = _optimizer(model, recipe.learning_rate)
        steps = recipe.epochs * math.ceil(len(split) / recipe.batch_size)
        warm_up = max(1, round(WARM_UP * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_peak(step, steps, warm_up))
        precision = resolved_precision(experiment.training.precision, device)
        choose_attention(model, encoder.patch_embed.num_patches + encoder.num_prefix_tokens, precision, device)
        masks = torch.Generator().manual_seed(derive_seed(seed, "pretrain mask"))
        for epoch in range(recipe.epochs):
            seed_torch(derive_seed(seed, "pretrain dropout", epoch))
            shuffle = derive_seed(seed, "pretrain shuffle", epoch)
            for images, _ in batches(split, recipe.batch_size, seed=shuffle, augment=experiment.data.augment):
                noise = torch.rand(len(images), encoder.patch_embed.num_patches, generator=masks)
                with autocast(precision, device):
                    loss = model(normalise(images.to(device)), noise.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                on_step(loss.detach())
    return encoder


def _optimizer(model: MaskedAutoencoder, learning_rate: float) -> torch.optim.Optimizer:
    undecayed = {"mask_token", *(f"encoder.{name}" for name in model.encoder.no_weight_decay())}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and name not in undecayed].append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": WEIGHT_DECAY * decays} for decays, members in groups.items()],
        lr=learning_rate,
        betas=BETAS,
    )


def _check(encoder: ViT) -> None:
    """Raises UserError if the encoder cannot be given some of the patches alone."""
    if not isinstance(encoder, VisionTransformer):
        raise UserError(
            f"--objective mae: the experiment's backbone is a {type(encoder).__name__} of timm, whose blocks cannot be "
            "given some of the patches alone; a VisionTransformer, or --objective supervised, would be right."
        )
    if type(cast(nn.Module, encoder.patch_embed)) is not PatchEmbed:
        raise UserError(
            f"--objective mae: the experiment's backbone makes its patches by {type(encoder.patch_embed).__name__}, so "
            "that hidden ones would shine through; plain patches, or --objective supervised, would be right."
        )
