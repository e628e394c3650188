from collections.abc import Sequence

import torch

def gaussian_blur(inpt: torch.Tensor, kernel_size: Sequence[int], sigma: Sequence[float]) -> torch.Tensor: ...
