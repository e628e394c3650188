"""A job with a site that misbehaves."""

import json
from pathlib import Path

from pt_peft_flare.job_folder import write_job

FAULTY_LEARNER = '''
import os, signal
import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from pt_peft_flare.learner import PeftLearner

class FaultyLearner(PeftLearner):
    """Does what FAULTS says in a round at site-2, and notes other sites' scalars should any come."""

    def handle_event(self, event_type, fl_ctx):
        super().handle_event(event_type, fl_ctx)
        if "analytix" in event_type:
            open("scalars_of_others", "a").write(event_type)

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        fault = FAULTS.get(str(shareable.get_header("current_round"))) if task_name == "train" else None
        if fl_ctx.get_identity_name() != "site-2" or not fault:
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        if fault in ("hang", "die", "host dies"):
            worker = self._opened(fl_ctx).worker
            worker.call("exchange")
            if fault == "host dies":
                host = os.getpgid(worker._worker.pid)
                os.kill(host, signal.SIGKILL)
            os.kill(worker._worker.pid, signal.SIGSTOP if fault == "hang" else signal.SIGKILL)
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        dxo = from_shareable(reply)
        if fault == "nan":
            dxo.data["head.bias"] = dxo.data["head.bias"] * np.nan
        elif fault == "shape":
            dxo.data["head.bias"] = np.zeros(99, np.float32)
        elif fault == "extra key":
            dxo.data["image"] = np.zeros((3, 32, 32), np.float32)
        elif fault == "extra metric":
            dxo.meta["initial_metrics"]["pixels"] = [0.5] * 100
        elif fault == "other code":
            dxo.meta["initial_metrics"]["code"]["source"] = "0" * 16
        elif fault == "no dxo":
            return type(reply)()
        updated = dxo.to_shareable()
        updated.set_header("current_round", shareable.get_header("current_round"))
        return updated
'''


def faulty_job(experiment, folder: Path, faults: dict, egress_filter: bool) -> Path:
    """A job whose site-2 misbehaves; without the site's egress filter its faults reach the server."""
    write_job(experiment, folder)
    code = f"FAULTS = {faults!r}\n" + FAULTY_LEARNER
    if not egress_filter:  # a site that has tampered with its learner
        code += "\n    def _refusals(self, experiment, fl_ctx):\n        return []\n"
    (folder / "app" / "custom" / "faulty_learner.py").write_text(code)
    path = folder / "app" / "config" / "config_fed_client.json"
    config = json.loads(path.read_text())
    config["executors"][0]["executor"]["path"] = "faulty_learner.FaultyLearner"
    if not egress_filter:
        config["task_result_filters"] = []
    path.write_text(json.dumps(config))
    return folder
