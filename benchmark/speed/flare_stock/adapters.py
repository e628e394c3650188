"""The model that FLARE's persistor holds: the trained tensors, without the backbone."""

from pathlib import Path

from torch import nn

from benchmark.speed.bare import Bare


class Adapters(nn.Module):
    """The trained tensors of a work, under their names in the model with the dots replaced."""

    def __init__(self, folder: str):
        """Takes the initial tensors of the work in `folder`."""
        super().__init__()
        for name, value in Bare(Path(folder), threads=1).state().items():
            self.register_parameter(flat(name), nn.Parameter(value))


def flat(name: str) -> str:
    """Makes a name without dots, as a module's parameter must have."""
    return name.replace(".", "__")
