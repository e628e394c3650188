"""All that the command measures, in its order."""

from itertools import chain
from pathlib import Path

from benchmark.speed.device.accuracy import Bench, accuracy_steps
from benchmark.speed.device.budget import Budget
from benchmark.speed.device.cases import ARCHITECTURES, Case, cases
from benchmark.speed.device.contract import contract_steps
from benchmark.speed.device.levers import lever_steps
from benchmark.speed.device.machine import compute_in_float32, origin
from benchmark.speed.device.pace import Pace
from benchmark.speed.device.results import Results
from benchmark.speed.device.sites import site_steps
from benchmark.speed.device.speed import Weights, speed_steps, warm_up
from benchmark.speed.device.steps import Runner, Step
from pt_peft.training.trainer import pick_device

SITES = (
    Case("ViT-Ti/16 at 224", "lora_vpt", "bfloat16", 32, ARCHITECTURES["ViT-Ti/16 at 224"]),
    Case("ViT-B/16 at 224", "lora", "bfloat16", 32, ARCHITECTURES["ViT-B/16 at 224"]),
)
LEVERS = (
    Case("ViT-Ti/16 at 224", "lora", "bfloat16", 32, ARCHITECTURES["ViT-Ti/16 at 224"]),
    Case("ViT-B/16 at 224", "lora", "bfloat16", 32, ARCHITECTURES["ViT-B/16 at 224"]),
)


def run(minutes: float, started: float, out: Path, device_name: str, folder: Path) -> None:
    """Measures and writes.

    Args:
        minutes: that it may take.
        started: `time.monotonic` at the command's start.
        out: folder of the results.
        device_name: ``auto``, ``cpu`` or ``cuda``.
        folder: for what is not kept.

    Raises:
        UserError: if there is no such device, or `out` has results.
    """
    device = pick_device(device_name, "--device")
    results = Results(out)
    pace, weights = Pace(device), Weights(folder, device)
    steps = chain(
        [Step("machine", "machine", lambda left: origin(device))],
        contract_steps(device, folder, out),
        speed_steps(cases(), weights, device, pace),
        site_steps(SITES, folder, weights, device, pace),
        lever_steps(LEVERS, weights, device, pace),
        accuracy_steps(Bench(folder / "images", device, pace)),
    )
    runner = Runner(Budget(minutes, started), results, steps)
    timer = runner.watch()
    compute_in_float32()
    warm_up(device)
    runner.run()
    timer.cancel()
