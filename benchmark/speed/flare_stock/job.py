"""Writes the job of stock FLARE, by FLARE's own recipe with its defaults.

python -m benchmark.speed.flare_stock.job WORK_FOLDER OUT
"""

import json
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat


def main(folder: Path, out: Path) -> None:
    """Writes the job folder ``out/stock``."""
    work = json.loads((folder / "work.json").read_text())
    recipe = FedAvgRecipe(
        name="stock",
        min_clients=len(work["sites"]),
        num_rounds=work["rounds"],
        model={"class_path": "benchmark.speed.flare_stock.adapters.Adapters", "args": {"folder": str(folder)}},
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=str(folder),
        server_expected_format=ExchangeFormat.PYTORCH,
    )
    recipe.export(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
