"""Whole encrypted federations in FLARE's simulator."""

import json
from typing import Any

import numpy as np
import pytest

from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import changed, simulate
from pt_peft.encryption.contexts import SERVER_FILE, SITE_FILE, write_pair
from pt_peft.exchange.ciphertext_layout import FEWEST_BYTES, MOST_BYTES, WEIGHT, Layout
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft_flare.__main__ import main
from pt_peft_flare.job_folder import write_job, write_workspace

pytest.importorskip("tenseal")
NAMES = ["site-1", "site-2", "site-3"]
LEARNER = '''
from dataclasses import replace
from pt_peft_flare.learner import PeftLearner
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import new_context

class CarelessLearner(PeftLearner):
    """At site-2: in round 1 nothing is encrypted, in round 2 it is with a key of its own."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        number = shareable.get_header("current_round")
        if task_name != "train" or fl_ctx.get_identity_name() != "site-2" or number not in (1, 2):
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        careful = self._opened(fl_ctx)
        self._job = replace(careful, cipher=Careless(careful.cipher, number))
        try:
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        finally:
            self._job = careful

class Careless:
    def __init__(self, cipher, number):
        self._cipher, self._number = cipher, number

    def decrypt_sum(self, payload):
        return self._cipher.decrypt_sum(payload)

    def encrypt(self, tensors, weight):
        if self._number == 1:
            return tensors
        return Cipher(new_context(), self._cipher.layout, 1e4).encrypt(tensors, weight)
'''


@pytest.fixture
def site(tiny_weights, tmp_path) -> Site:
    write_pair(tmp_path / "keys")
    return Site(limits=Limits.open(), backbone=str(tiny_weights), encryption_contexts=str(tmp_path / "keys"))


@pytest.fixture
def experiment(tiny):
    return changed(tiny, encryption={"scheme": "ckks"})


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "3"])
def test_equal_to_the_oracle_and_nothing_else_leaves(threads, experiment, site, shared_host, tmp_path):
    """To 1e-6. What a careless site does not encrypt, or with a key of its own, stays there."""
    experiment = changed(experiment, federation={"rounds": 4})
    trainer = make_trainer(experiment, site)
    absent = {("site-2", 1), ("site-2", 2)}
    expected = federate(trainer, load_sites(experiment, site, NAMES), absent=absent).tensors
    write_job(experiment, tmp_path / "job")
    (tmp_path / "job" / "app" / "custom" / "careless_learner.py").write_text(LEARNER)
    path = tmp_path / "job" / "app" / "config" / "config_fed_client.json"
    path.write_text(path.read_text().replace("pt_peft_flare.learner.PeftLearner", "careless_learner.CarelessLearner"))
    write_workspace(site, tmp_path / "workspace")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "3", "-t", threads, cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert [sorted(entry["left_out"]) for entry in run.metrics["rounds"]] == [[], ["site-2"], ["site-2"], []]

    finals: list[tuple[Tensors, Any]] = [
        load_adapter(run.workspace / name / "simulate_job" / "final_adapter.safetensors") for name in NAMES
    ]
    for tensors, header in finals:
        assert header["round"] == 4
        assert header["model"]["method"]["name"] == "lora_vpt"
        assert tensors.keys() == expected.keys()
        assert max(np.abs(tensors[key] - expected[key]).max() for key in expected) <= 1e-6
        assert all(np.array_equal(tensors[key], finals[0][0][key]) for key in expected)

    layout = Layout(trainer.exchange.up(0))
    for name in NAMES:
        lines = run.ledger(name)
        trained = [line for line in lines if line["task"] == "train" and "held_back" not in line]
        assert len(trained) == (2 if name == "site-2" else 4)
        for line in trained:
            assert line["encrypted"] == "ckks"
            assert line["ciphertexts"] == len(layout.keys)
            assert line["holds"].keys() == expected.keys()
            assert "tensors" not in line
            assert FEWEST_BYTES <= line["tensor_bytes"] / len(layout.keys) <= MOST_BYTES
            assert len(line["sha256"]) == 64
            assert line["tensor_bytes"] == run.metrics["rounds"][line["round"]]["sites"][name]["bytes_out"]
        folder = run.workspace / name / "simulate_job"
        assert main(["ledger", str(folder), "--verify", str(run.server / "metrics.json")]) == 0
        held_back = [line["held_back"] for line in lines if "held_back" in line]
        words = ("not just 1 ciphertexts; not allowed: 'blocks", "decrypt to nothing") if name == "site-2" else ()
        assert len(held_back) == len(words)
        assert all(word in line for word, line in zip(words, held_back, strict=True))
    received = [entry["sites"]["site-1"]["bytes_in"] for entry in run.metrics["rounds"]]
    assert received[0] == 0
    assert all(FEWEST_BYTES < one < len(layout.keys) * MOST_BYTES + 9 for one in received[1:])

    # The server has nothing that it could read.
    files = {path.name for path in run.server.rglob("*.safetensors")}
    assert files == {"encrypted_adapter.safetensors", "encrypted_best_adapter.safetensors"}
    encrypted = run.server / "encrypted_adapter.safetensors"
    sums, said = load_adapter(encrypted)
    metrics: Any = said["metrics"]
    assert sums.keys() == {*layout.keys, WEIGHT}
    assert metrics["test"] == run.metrics["final"]["test"]
    out = tmp_path / "adapter.safetensors"
    assert main(["decrypt", str(encrypted), "--context", str(tmp_path / "keys" / SITE_FILE), "--out", str(out)]) == 0
    assert all(np.array_equal(value, finals[0][0][key]) for key, value in load_adapter(out)[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (
            lambda keys: (keys / SERVER_FILE).unlink(),
            "server_context.tenseal: cannot be read (No such file or directory)",
        ),
        (
            lambda keys: (keys / SERVER_FILE).write_bytes((keys / SITE_FILE).read_bytes()),
            "which the server must not have",
        ),
        (lambda keys: (keys / SITE_FILE).unlink(), f"{SITE_FILE}: cannot be read (No such file or directory)"),
        (lambda keys: (keys / SITE_FILE).write_bytes(b"junk"), f"{SITE_FILE}: is damaged, or no context of tenseal's"),
        (None, "file 'server_context.tenseal' in the kit's folder 'startup' cannot be used"),
    ],
    ids=["no server context", "secret key at the server", "no key at the sites", "damaged key", "no kit"],
)
def test_keys_that_are_not_as_they_should_be(breaks, words, experiment, site, shared_host, tmp_path):
    if breaks:
        breaks(tmp_path / "keys")
    else:
        site = site.model_copy(update={"encryption_contexts": None})
    write_job(experiment, tmp_path / "job")
    write_workspace(site, tmp_path / "workspace")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert words in run.output.replace("\n", " "), run.output
    if words.startswith(SITE_FILE):  # where, the site's log alone says
        assert "site-1: the site has no key for the job's encryption that can be used; its log says why" in run.output
    egress = tmp_path / "workspace" / "site-1" / "simulate_job" / "egress.jsonl"
    assert not egress.exists() or all(
        "tensor_bytes" not in json.loads(line) for line in egress.read_text().splitlines()
    )
