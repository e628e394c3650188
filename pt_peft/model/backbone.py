"""timm Vision Transformers with pinned weights."""

from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers.mlp import Mlp, SwiGLU, SwiGLUPacked
from torch import nn

from pt_peft.errors import BackboneMismatch, UserError
from pt_peft.experiment.sections import Backbone
from pt_peft.experiment.site import HUB_PREFIX, TIMM_PREFIX, Site
from pt_peft.files import sha256_of
from pt_peft.model.vit import ViT
from pt_peft.model.weights.loading import load_weights

EMBEDDED = Path(__file__).parents[1] / "embedded" / "backbone.safetensors"
"""The weights that the package holds; their description lies beside them as ``.json``."""

_MLPS = {"Mlp": Mlp, "SwiGLU": SwiGLU, "SwiGLUPacked": SwiGLUPacked}
"""The classes of the names in `pt_peft.experiment.sections.LAYERS`."""


def weights_file(site: Site) -> Path:
    """The weights file of `site`: its own, a published one, or the embedded one.

    Raises:
        UserError: if the site's own file is not there, or the published one cannot be fetched.
    """
    if site.backbone is None:
        return EMBEDDED
    if site.backbone.startswith((TIMM_PREFIX, HUB_PREFIX)):
        from pt_peft.model.weights.hub import fetch

        return fetch(site.backbone)
    path = site.existing("backbone")
    if not path.is_file():
        inside = next((one for one in sorted(path.glob("*.safetensors"))), path / "model.safetensors")
        raise UserError(
            f"site.json: field 'backbone' is {str(path)!r}, which is not a file; the weights in it, such as "
            f"{str(inside)!r}, would be right.",
            "backbone",
        )
    return path


def check_digest(backbone: Backbone, weights: Path) -> None:
    """Refuses weights other than those the experiment pins.

    Raises:
        BackboneMismatch: if the file's digest is another; the message has both.
    """
    digest = sha256_of(weights)
    if digest != backbone.sha256:
        raise BackboneMismatch(
            f"the backbone file of this site has SHA-256 {digest}, but the experiment needs {backbone.sha256} "
            f"({backbone.name}): every site must start from the same weights."
        )


def pinned_weights(backbone: Backbone, site: Site) -> Path:
    """The weights file of `site`, checked against the digest that the experiment pins.

    Raises:
        UserError: as `weights_file` does.
        BackboneMismatch: as `check_digest` does.
    """
    path = weights_file(site)
    check_digest(backbone, path)
    return path


def create_backbone(backbone: Backbone, num_classes: int, weights: Path | None) -> ViT:
    """A timm ViT in float32 on the CPU with a fresh head.

    Args:
        backbone: architecture, arguments of its constructor, and image size.
        num_classes: outputs K of the head.
        weights: a file that `pt_peft.model.weights` reads. A head in it is left out, position embeddings are resampled
            to ``backbone.image_size``, and tensors that stay frozen share memory with other processes that read the
            file. None leaves the tensors random.

    Raises:
        UserError: if timm does not know the architecture or its arguments, or if the file's tensors do not fit it.
    """
    model = _without_values(backbone, num_classes) if weights else None
    if model is None:
        model = _create(backbone, num_classes)
    _check_architecture(model, backbone)
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise UserError(
                f"experiment: field 'backbone.name' is '{backbone.name}', whose layer '{name}' keeps running "
                "statistics, which change in training and do not travel; a Vision Transformer with layer norms alone "
                "would be right."
            )
    go_through_layers(model)
    if weights is not None:
        load_weights(model, weights, backbone, head_name(model))
        head = model.get_classifier()
        if head.weight.is_meta:
            head.to_empty(device="cpu").reset_parameters()
    return model


def plain_model(backbone: Backbone, num_classes: int) -> ViT:
    """The timm model of `backbone` as timm itself makes it, with random tensors. Raises what timm raises."""
    kwargs: dict[str, Any] = {**backbone.kwargs, "img_size": backbone.image_size, "num_classes": num_classes}
    kwargs.pop("dynamic_img_size", None)  # it would change the shape of the patches between layers, and nothing else
    if "mlp_layer" in kwargs:  # timm knows activations by name, MLPs by class
        kwargs["mlp_layer"] = _MLPS[kwargs["mlp_layer"]]
    return cast(ViT, timm.create_model(backbone.name, pretrained=False, **kwargs))


def _create(backbone: Backbone, num_classes: int) -> ViT:
    """As `plain_model`. Raises UserError as `create_backbone` does."""
    try:
        return plain_model(backbone, num_classes)
    except Exception as error:  # timm's constructors raise whatever their layers do
        raise UserError(
            f"experiment: field 'backbone' ({backbone.name}) cannot be built with image_size {backbone.image_size} and "
            f"kwargs {backbone.kwargs} ({type(error).__name__}: {error}); a Vision Transformer of timm, such as "
            "vit_tiny_patch16_224, at an image size that its patches divide would be right."
        ) from None


def go_through_layers(model: ViT) -> None:
    """Lets attention call its projections: EVA's and BEiT's take the weight out of the layer otherwise.

    What wraps the layer would be passed by. The sum is the same.
    """
    for _, module in model.named_modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True


def why_no_vit(model: nn.Module) -> str | None:
    """What `model` lacks of what `ViT` declares, as a phrase; None if it has all."""
    lacking = [name for name in ("blocks", "patch_embed", "num_prefix_tokens", "embed_dim") if not hasattr(model, name)]
    classifier = getattr(model, "get_classifier", None)
    head = classifier() if callable(classifier) else None
    if not lacking and isinstance(head, nn.Linear) and len(cast(ViT, model).blocks):
        return None
    return (
        "which is not a plain Vision Transformer of timm (blocks of attention and one linear "
        f"head{'; it has no ' + ', '.join(lacking) if lacking else ''})"
    )


def _check_architecture(model: ViT, backbone: Backbone) -> None:
    """Raises UserError if `model` lacks something that `ViT` declares."""
    if lacks := why_no_vit(model):
        raise UserError(f"experiment: field 'backbone.name' is '{backbone.name}', {lacks}.")


def _without_values(backbone: Backbone, num_classes: int) -> ViT | None:
    """The model on the meta device; None unless a weights file has all the tensors that it is made of.

    Random values that are replaced at once would take seconds, and for that time a copy of the backbone in every
    process.
    """
    if backbone.allow_missing:
        return None
    with torch.device("meta"):
        try:
            model = _create(backbone, num_classes)
        except UserError:  # the error on the real device is clearer
            return None
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return None if held or list(model.buffers()) else model  # which no file has


def head_name(model: ViT) -> str:
    """Path of the classifier in `model`, e.g. ``head``."""
    return model.pretrained_cfg["classifier"]


def freeze(model: nn.Module) -> None:
    """Marks every parameter as not trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
