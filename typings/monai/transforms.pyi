from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

class Transform: ...

class Randomizable:
    R: np.random.RandomState
    def set_random_state(self, seed: int | None = None) -> Randomizable: ...

# Tensors are plain tensors within `set_track_meta(False)`.
class _ArrayTransform(Transform):
    def __call__(self, img: torch.Tensor | npt.NDArray[np.uint8]) -> torch.Tensor: ...

class CenterSpatialCrop(_ArrayTransform):
    def __init__(self, roi_size: Sequence[int] | int) -> None: ...

class EnsureChannelFirst(_ArrayTransform):
    def __init__(self, *, channel_dim: int | str | None = None) -> None: ...

class Flip(_ArrayTransform):
    def __init__(self, spatial_axis: int) -> None: ...

class RepeatChannel(_ArrayTransform):
    def __init__(self, repeats: int) -> None: ...

class Rotate90(_ArrayTransform):
    def __init__(self, k: int) -> None: ...

class Compose(_ArrayTransform):
    def __init__(self, transforms: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> None: ...
