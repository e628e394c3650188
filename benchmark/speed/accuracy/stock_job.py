"""Writes the job of stock FLARE, by FLARE's own recipe with its defaults.

python -m benchmark.speed.accuracy.stock_job TASK_FOLDER OUT whole|trained RATE_FACTOR
"""

import json
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe

CLASSES = {
    "whole": "benchmark.speed.accuracy.stock_net.Net",
    "trained": "benchmark.speed.flare_stock.adapters.Adapters",
}
"""What the server holds, by what a site sends."""


def main(folder: Path, out: Path, sends: str, rate_factor: float) -> None:
    """Writes the job folder ``out/stock``."""
    work = json.loads((folder / "work.json").read_text())
    recipe = FedAvgRecipe(
        name="stock",
        min_clients=len(work["sites"]),
        num_rounds=work["rounds"],
        model={"class_path": CLASSES[sends], "args": {"folder": str(folder)}},
        train_script=str(Path(__file__).with_name("stock_client.py")),
        train_args=f"{folder} {sends} {rate_factor}",
    )
    recipe.export(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
