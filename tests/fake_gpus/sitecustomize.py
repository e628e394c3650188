"""Makes torch find two GPUs in every Python that has this folder on its path; their models compute on the CPU.

Each process that asks for GPUs writes its number into the file that the environment variable ``ASKED`` names.
"""

import os

import torch

from pt_peft.training.trainer import LocalTrainer

THERE = ("0", "1")


def _seen() -> list[str]:
    with open(os.environ["ASKED"], "a") as file:
        print(os.getpid(), file=file)
    return [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(THERE)).split(",") if one in THERE]


torch.cuda.__dict__.update(
    is_available=lambda: bool(_seen()),
    device_count=lambda: len(_seen()),
    get_device_name=lambda device: f"fake {_seen()[device.index]}",
    set_per_process_memory_fraction=lambda share, device: None,
)
torch.accelerator.__dict__.update(is_available=lambda: False)  # by which torch's optimisers ask for a GPU's state
_make = LocalTrainer.__init__


def _make_on_cpu(self, experiment, weights, device, **options):
    _make(self, experiment, weights, torch.device("cpu"), **options)


LocalTrainer.__init__ = _make_on_cpu
