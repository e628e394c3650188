"""The types of a Vision Transformer of timm. They exist for the type checker: a model's own class is timm's."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn


class Layer(nn.Module):
    """A module of a timm model. Methods register tensors and modules on it, whose types only they know."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

        def named_modules(
            self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
        ) -> "Generator[tuple[str, Layer], None, None]":
            """Yields path and module, as `nn.Module` does, which does not say so."""
            ...


class ViT(Layer):
    """What every Vision Transformer of timm has. `create_backbone` checks that a model has it."""

    blocks: Sequence[Layer]
    """From the input on; an ``nn.Sequential``."""
    patch_embed: Layer
    """Images float32 (B,3,S,S) to patch tokens (B,N,d)."""
    embed_dim: int
    """Width d of the tokens."""
    num_prefix_tokens: int
    """Class and register tokens before the patch tokens."""
    pretrained_cfg: dict[str, Any]
    """timm's record of the model. ``classifier`` is the path of the head."""

    if TYPE_CHECKING:

        def get_classifier(self) -> nn.Linear:
            """The head: pooled features (B,d) to logits (B,K)."""
            ...
