"""What an experiment's model is and takes, found from shapes before anything of it is allocated.

`check_model` asks a site's limits about it. Models are built on torch's meta device, where tensors have shapes and no
values, so that a model of any size costs a fraction of a second.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pt_peft import reasons
from pt_peft.errors import OutsideLimits, UserError, told_as
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Footprint, Limits
from pt_peft.model.adapted_model import build_model
from pt_peft.model.backbone import create_backbone, head_name
from pt_peft.model.planned_exchange import with_control_variates
from pt_peft.model.vit import ViT
from pt_peft.model.weights.loading import load_weights
from pt_peft.training.trainer import EVALUATION_BATCH, EVALUATION_COPIES

COPIES = 4
"""Tensors for each one that trains, besides itself: its gradient, AdamW's two moments, its start."""

Made = TypeVar("Made")


def check_model(experiment: Experiment, limits: Limits, weights: Callable[[], Path] | None, *, trains: bool) -> None:
    """Asks a site's limits about an experiment and its model. Open limits cost nothing.

    Args:
        experiment: the job's.
        limits: the site's.
        weights: finds the backbone's file, from which its tensors must come; None where nobody needs it.
        trains: whether the model is to train or evaluate here; if not, its tensors alone count.

    Raises:
        OutsideLimits: if they refuse it; no values have then been made.
        UserError: as `build_model` and `load_weights` do.
    """
    if limits == Limits.open():
        return
    limits.check(experiment)
    for refusal in model_refusals(experiment, limits, weights, trains=trains):
        raise refusal


def model_refusals(
    experiment: Experiment, limits: Limits, weights: Callable[[], Path] | None, *, trains: bool
) -> Iterator[OutsideLimits]:
    """Yields all in which the model is outside the limits, as `check_model` asks them; none is built past one.

    Raises:
        UserError: as `build_model` and `load_weights` do.
    """
    spec = experiment.model
    backbone = _on_meta(lambda: create_backbone(spec.backbone, len(spec.classes), None))
    if too_large := [*limits.memory_refusals(_nbytes(backbone))]:
        yield from too_large
        return
    backbone.requires_grad_(False)  # the least that any method takes
    if trains and (refused := [*limits.footprint_refusals(footprint(backbone, experiment, "meta"))]):
        yield from refused
        return
    # Not before: loading resamples a position embedding to as many patches as the job asks for.
    if weights is not None and (refused := [*_backbone_refusals(backbone, experiment, limits, weights())]):
        yield from refused
        return
    try:
        model = _on_meta(lambda: build_model(spec, None))
        found = footprint(model.module, experiment, "meta")
    except (UserError, NotImplementedError):  # some tuners look at values
        model = build_model(spec, None)
        found = footprint(model.module, experiment, "cpu")
    yield from limits.exchange_refusals(experiment, model.exchange(experiment.federation.rounds))
    if trains:
        yield from limits.footprint_refusals(found)
    else:
        yield from limits.memory_refusals(_nbytes(model.module))


def exchange_of_shapes(experiment: Experiment) -> Exchange:
    """What an experiment exchanges, found without weights. Raises UserError as `build_model` does."""
    try:
        model = _on_meta(lambda: build_model(experiment.model, None))
    except (UserError, NotImplementedError):  # some tuners look at values
        model = build_model(experiment.model, None)
    return with_control_variates(model.exchange(experiment.federation.rounds), experiment)


def footprint(module: ViT, experiment: Experiment, device: str) -> Footprint:
    """What a model is and takes.

    Args:
        module: the model; what has ``requires_grad`` trains.
        experiment: says the size of images and batches.
        device: where to find out: ``meta``, or ``cpu`` for a model that looks at values.

    Raises:
        UserError: if the model takes no images of this size.
        NotImplementedError: if the model looks at values and `device` is ``meta``.
    """
    size = experiment.backbone.image_size
    tried = _copied(module, device)
    try:
        patches = _patches(tried, size, device)
        # As DP-SGD computes attention. What two images keep less what one keeps has no weights.
        attention = nullcontext() if experiment.privacy.sample else _FusedAttention()
        one, two = (_saved(tried, size, count, device, attention) for count in (1, 2))
        saved = [with_another - alone for alone, with_another in zip(one, two, strict=True)]
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"experiment: field 'backbone' ({experiment.backbone.name}) does not take images of {size} pixels "
            f"({reason}); an image size that its patches divide would be right."
        ) from None
    trained = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    step = COPIES * trained + experiment.training.batch_size * sum(saved)
    evaluation = EVALUATION_BATCH * EVALUATION_COPIES * max(saved)
    return Footprint(patches, _nbytes(module) + max(step, evaluation))


def _on_meta(make: Callable[[], Made]) -> Made:
    with torch.device("meta"):
        return make()


def _nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _backbone_refusals(backbone: ViT, experiment: Experiment, limits: Limits, weights: Path) -> Iterator[OutsideLimits]:
    """Asks `limits` whether `backbone`, on the meta device, is that of the file. Loads it."""
    with told_as(reasons.Backbone()):
        fit = load_weights(backbone, weights, experiment.backbone, head_name(backbone))
    yield from limits.backbone_refusals(fit.missing, fit.left_over, fit.same_patches)


def _copied(module: ViT, device: str) -> ViT:
    """A copy on `device`."""
    tried: dict[int, torch.Tensor] = {id(buffer): buffer.to(device) for buffer in module.buffers()}
    for parameter in module.parameters():
        tried[id(parameter)] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
    return copy.deepcopy(module, tried)


def _patches(module: ViT, size: int, device: str) -> int:
    """Patches of an image, as the patch embedding makes them."""
    with torch.no_grad():
        tokens = cast(torch.Tensor, module.patch_embed(torch.zeros(1, 3, size, size, device=device)))
    return tokens.numel() // module.embed_dim


def _saved(module: ViT, size: int, images: int, device: str, attention: AbstractContextManager[object]) -> list[int]:
    """Bytes of each tensor that a training step on so many images keeps for its backward pass, and of the images."""
    batch = torch.zeros(images, 3, size, size, device=device)
    found = [batch.nbytes]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.nbytes)
        return tensor

    def give_back(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, give_back), attention:
        module(batch)
    return found


class _FusedAttention(TorchFunctionMode):
    """Lets attention keep what the fused kernels of a CPU or a GPU keep; on the meta device torch takes another way."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        options = kwargs or {}
        plain = len(args) == 3 and options.get("attn_mask") is None and not options.get("dropout_p")
        if func is functional.scaled_dot_product_attention and plain:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return func(*args, **options)
