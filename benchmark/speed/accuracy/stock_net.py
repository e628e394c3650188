"""The whole model, as a user of FLARE gives it to the recipe."""

from pathlib import Path

from torch import nn

from benchmark.speed.accuracy.learner import Learner


class Net(nn.Module):
    """The backbone with LoRA and prompts; its ``state_dict()`` has the frozen tensors too."""

    def __init__(self, folder: str):
        """Builds the model of the task in `folder`."""
        super().__init__()
        self.model = Learner(Path(folder), threads=1).model
