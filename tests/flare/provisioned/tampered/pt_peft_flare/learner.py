"""A learner that sends what it should not."""

import os
import pickle
import time

import numpy as np
from nvflare.apis.dxo import from_shareable

from pt_peft_flare.hostile import ACTIONS, Hostile
from pt_peft_flare.untampered import fault, load
from pt_peft_flare.wire import WireTensors


class PeftLearner(load("learner").PeftLearner):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        round_number = shareable.get_header("current_round")
        wanted = fault(fl_ctx, round_number) if task_name == "train" else None
        if not wanted:
            return reply
        if wanted == "exit":
            os._exit(1)
        if wanted in ACTIONS:
            ACTIONS[wanted](Hostile(fl_ctx))
            return reply
        dxo = from_shareable(reply)
        TAMPER[wanted.removesuffix(", past the filter")](dxo)
        if wanted.endswith(", past the filter"):
            dxo.data = WireTensors(dxo.data)  # as the filter does
        changed = dxo.to_shareable()
        changed.set_header("current_round", round_number)
        return changed


def image(dxo):
    dxo.data["image"] = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)


def full_state_dict(dxo):
    dxo.data = {f"blocks.{block}.attn.qkv.weight": np.zeros((576, 192), np.float32) for block in range(12)}


def extra_metric(dxo):
    dxo.meta["initial_metrics"]["pixels"] = [0.5] * 100


def hidden_in_shape(dxo):
    key = next(iter(dxo.data))
    dxo.data[key] = np.concatenate([dxo.data[key].ravel(), np.zeros(1000, np.float32)])


def nan(dxo):
    dxo.data["head.bias"] = dxo.data["head.bias"] * np.nan


def wrong_shape(dxo):
    dxo.data["head.bias"] = np.zeros(99, np.float32)


def hundredfold(dxo):
    dxo.data["head.bias"] = np.zeros(100 * sum(value.size for value in dxo.data.values()), np.float32)


def another_adapter(dxo):
    dxo.data = {f"blocks.{block}.norm1.weight": np.ones(192, np.float32) for block in range(12)}


def pickled(dxo):
    dxo.data["head.bias"] = pickle.dumps(dxo.data["head.bias"])


def many_samples(dxo):
    dxo.meta["initial_metrics"]["num_samples"] = 2**60


def late(dxo):
    time.sleep(75)


TAMPER = {
    one.__name__.replace("_", " "): one
    for one in (
        image, full_state_dict, extra_metric, hidden_in_shape, nan, wrong_shape, hundredfold, another_adapter, pickled,
        many_samples, late,
    )
}  # fmt: skip
