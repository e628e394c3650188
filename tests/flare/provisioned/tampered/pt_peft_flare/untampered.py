"""The installed modules that this package hides."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

from nvflare.apis.fl_context import FLContext

import pt_peft_flare
from pt_peft_flare.run_context import read_experiment


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"pt_peft_flare.untampered_{name}", Path(pt_peft_flare.__path__[-1]) / f"{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fault(fl_ctx: FLContext, round_number: int | None) -> str | None:
    """What `faults.json` in the site's kit says it does in this round of this experiment."""
    path = Path(fl_ctx.get_engine().get_workspace().root_dir) / "faults.json"
    faults = json.loads(path.read_text()) if path.exists() else {}
    return faults.get(read_experiment(fl_ctx).name, {}).get(str(round_number))
