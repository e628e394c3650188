"""The private names of other libraries that `pt_peft` uses: why, and what stands in when one is gone.

They are HF PEFT's and torch's. Of timm and MONAI it uses public names alone.
"""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager

import peft.tuners.boft.layer as boft_layer
from torch import nn


def boft_extension() -> Callable[[], object] | None:
    """HF PEFT's ``get_fbd_cuda``, which compiles BOFT's CUDA extension on its first call or finds that it cannot.

    The tensors of BOFT depend on it, see `pt_peft.methods.boft`. None if HF PEFT has no such function without
    arguments: the method then refuses.
    """
    found = getattr(boft_layer, "get_fbd_cuda", None)
    return found if callable(found) and not inspect.signature(found).parameters else None


@contextmanager
def without_boft_extension() -> Generator[None]:
    """BOFT layers that are made within have no CUDA extension, and none is compiled. HF PEFT is restored after."""
    found = boft_extension()
    if found is None:
        yield
        return
    boft_layer.get_fbd_cuda = lambda: None
    try:
        yield
    finally:
        boft_layer.get_fbd_cuda = found


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a forward hook is registered on `module` itself.

    torch has no public way to ask. Without its ``_forward_hooks`` and ``_forward_pre_hooks`` the answer is always yes:
    every layer then counts as changed, and the features of a frozen prefix are not cached.
    """
    hooks = [getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks")]
    return any(hook is None or len(hook) > 0 for hook in hooks)
