"""What FLARE's persistor holds: the tensors that train, without the backbone."""

from pathlib import Path

from torch import nn

from benchmark.speed.bare import Bare


class Adapters(nn.Module):
    """The trained tensors of the work in `folder`, under the names they have in the model with dots replaced."""

    def __init__(self, folder: str):
        super().__init__()
        for name, value in Bare(Path(folder), threads=1).state().items():
            self.register_parameter(flat(name), nn.Parameter(value))


def flat(name: str) -> str:
    """As a name that a module may give to a parameter."""
    return name.replace(".", "__")
