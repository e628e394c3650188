"""What a site's ledger says, and that it is what the server counts, to the bit."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ProcessType
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

from helpers import changed
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import SITE_FILE, read_file, site_context, write_pair
from pt_peft.environment import own_code
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors, TensorSpec, payload_sha256
from pt_peft.experiment.experiment import Experiment
from pt_peft_flare import federated_run, ledger
from pt_peft_flare.__main__ import main
from pt_peft_flare.federated_run import FederatedRun
from pt_peft_flare.filters import EgressFilter
from pt_peft_flare.persistor import EXCHANGE
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.site_tasks import SiteTask

NAMES = ["site-1", "site-2"]
SPECS = {
    "blocks.0.attn.qkv.lora_A": TensorSpec((4, 32), "float32"),
    "blocks.0.attn.qkv.lora_B": TensorSpec((96, 4), "float32"),
    "head.weight": TensorSpec((4, 32), "float32"),
    "head.bias": TensorSpec((4,), "float32"),
}
TRAINED = Exchange(SPECS, frozenset({"head.bias", "head.weight"}))


class Federation:
    """A server and two sites of one process, with a message of FLARE's between filter and server."""

    def __init__(self, folder: Path, experiment: Experiment):
        self.folder, self.experiment = folder, experiment
        for name in ("server", *NAMES):
            run = self._run_dir(name)
            (run / f"app_{name}" / "config").mkdir(parents=True)
            (run / f"app_{name}" / "config" / "experiment.json").write_text(experiment.to_json())
            (folder / name / "local").mkdir()
            (folder / name / "local" / "site.json").write_text(
                json.dumps({"limits": None, "encryption_contexts": str(folder / "keys")})
            )
        write_pair(folder / "keys") if experiment.encryption else None
        self.filters = {name: _egress() for name in NAMES}
        self.random = np.random.default_rng(5)

    def _run_dir(self, name: str) -> Path:
        return self.folder / name / "simulate_job"

    def context(self, name: str, task: str = "") -> Any:
        run = self._run_dir(name)
        workspace = SimpleNamespace(
            root_dir=str(self.folder / name),
            get_run_dir=lambda job: str(run),
            get_app_config_dir=lambda job: str(run / f"app_{name}" / "config"),
            get_site_config_dir=lambda: str(self.folder / name / "local"),
        )
        return SimpleNamespace(
            get_prop=lambda key, default=None: task if key == FLContextKey.TASK_NAME else default,
            get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace),
            get_job_id=lambda: "simulate_job",
            get_identity_name=lambda: name,
            get_peer_context=lambda: None,
            get_process_type=lambda: ProcessType.SERVER_JOB if name == "server" else ProcessType.CLIENT_JOB,
        )

    def complete(self) -> None:
        initial = {key: np.zeros(spec.shape, spec.dtype) for key, spec in SPECS.items()}
        persistor: Any = SimpleNamespace(
            load=lambda fl_ctx: make_model_learnable(initial, {EXCHANGE: TRAINED.to_json()}),
            save_as=lambda *arguments: None,
        )
        FederatedRun(self.context("server"), persistor, self).complete()

    def site_names(self) -> list[str]:
        return NAMES

    def present_sites(self, silence_s: int) -> list[str]:
        return NAMES

    def event(self, event_type: str) -> None:
        pass

    def event_with(self, event_type: str, key: str, data: object) -> None:
        pass

    def ask(self, task: SiteTask, accept: Any) -> RoundResults[Any]:
        results = RoundResults(accept)
        for name in NAMES:
            result = self.result(name, task.name, task.round_number).to_shareable()
            result.set_header(AppConstants.CURRENT_ROUND, task.round_number)
            left = self.filters[name].process(result, self.context(name, task.name))
            model = FLModelUtils.from_shareable(fobs.loads(fobs.dumps(left)))
            model.meta["client_name"] = name
            results.arrived(name)
            assert results.add(name, model), results.left_out
        results.close({})
        return results

    def result(self, name: str, task: str, number: int) -> DXO:
        report = {"seconds": 1.25, "code": own_code().model_dump(), "val": None}
        if task == "validate":
            return DXO(DataKind.METRICS, data={**report, "test": None})
        report |= {"num_samples": 30, "train_loss": 1.23456789}
        meta = {MetaKey.INITIAL_METRICS: report, FLMetaKey.NUM_STEPS_CURRENT_ROUND: 30}
        return DXO(DataKind.WEIGHTS, data=self._payload(), meta=meta)

    def _payload(self) -> Tensors:
        tensors = {key: self.random.normal(size=one.shape).astype("float32") for key, one in TRAINED.up(0).items()}
        tensors = {key: value.T.copy().T for key, value in tensors.items()}  # in Fortran's order, as torch may leave it
        if self.experiment.encryption:
            key = site_context(read_file(self.folder / "keys" / SITE_FILE), "site")
            cipher = Cipher(key, Layout(TRAINED.up(0)), self.experiment.encryption.largest_value)
            return cipher.encrypt(tensors, self.experiment.aggregation.weight(30))
        return self.experiment.payload.up.encode(tensors)


def _egress() -> EgressFilter:
    made: Any = EgressFilter()
    made._exchange = TRAINED
    return made


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    nvflare_fobs_initialize()
    monkeypatch.setattr(federated_run, "log_round", lambda *arguments: None)
    monkeypatch.setattr(federated_run, "log_final", lambda *arguments: None)


def finished(folder: Path, tiny: Experiment, **fields: Any) -> Path:
    """The folder of a federation that has done two rounds and the final evaluation."""
    Federation(folder, changed(tiny, **fields)).complete()
    return folder


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return finished(tmp_path, tiny)


def metrics(folder: Path) -> Path:
    return folder / "server" / "simulate_job" / "metrics.json"


def kept(folder: Path, site: str = "site-1") -> Path:
    return folder / site / "simulate_job" / "egress.jsonl"


def shown(capsys, *arguments, code=0) -> tuple[dict, str]:
    """What the command prints, as JSON, and its error."""
    assert main(["ledger", *map(str, arguments), "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


def edited(path: Path, edit: Any) -> None:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"payload": {"up": {"name": "float16"}, "down": {"name": "float16"}}},
        {"payload": {"up": {"name": "bfloat16"}, "down": {"name": "bfloat16"}}},
        {"payload": {"up": {"name": "int8"}, "down": {"name": "int8"}}},
        {"payload": {"up": {"name": "top_k"}}},
        {"encryption": {"scheme": "ckks"}},
    ],
    ids=["float32", "float16", "bfloat16", "int8", "top_k", "ckks"],
)
def test_what_the_server_counts_is_what_left(fields, tiny, tmp_path, capsys):
    if "encryption" in fields:
        pytest.importorskip("tenseal")
    folder = finished(tmp_path, tiny, **fields)
    lines = [json.loads(line) for line in kept(folder).read_text().splitlines()]
    record = json.loads(metrics(folder).read_text())
    assert [line["sha256"] for line in lines[:2]] == [one["sites"]["site-1"]["sha256"] for one in record["rounds"]]
    assert len({one["sites"][name]["sha256"] for one in record["rounds"] for name in NAMES}) == 4
    found, _ = shown(capsys, kept(folder).parent, "--verify", metrics(folder))
    assert found["counted"] == 3
    assert [one["counted"] for one in found["sent"]] == [True] * 3
    assert found["bytes"] == sum(one["sites"]["site-1"]["bytes_out"] for one in record["rounds"])


def test_for_a_person(folder, capsys):
    assert main(["ledger", str(kept(folder).parent), "--verify", str(metrics(folder))]) == 0
    lines = capsys.readouterr().out.splitlines()
    digest = json.loads(metrics(folder).read_text())["rounds"][1]["sites"]["site-1"]["sha256"]
    nbytes = 4 * sum(spec.size for spec in TRAINED.up(0).values())
    assert lines[2].split()[:6] == ["round", "2", "train", f"{nbytes:,}", "bytes", digest[:12]]
    assert lines[2].endswith("counted")
    assert lines[3].split()[:4] == ["final", "validate", "0", "bytes"]
    assert lines[4] == f"in all 3 result(s) left, with {2 * nbytes:,} bytes of tensors; 0 held back"
    assert lines[5] == "the server counts 3 result(s) of this site; 3 of them are in this ledger"
    assert len(lines) == 6


def test_the_digest_can_be_made_by_hand():
    """As docs/guide/payloads.md says."""
    tensors = {"b": np.array([[1, 2], [3, 4]], np.float16).T, "a": np.array(2.5, np.float32)}
    made = hashlib.sha256(b"a\0float32\0()\0" + np.float32(2.5).tobytes())
    made.update(b"b\0float16\0(2, 2)\0" + np.array([1, 3, 2, 4], np.float16).tobytes())
    assert payload_sha256(tensors) == made.hexdigest()
    assert payload_sha256({"a": np.array(2.5)}) != payload_sha256({"a": np.array([2.5])})


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (
            lambda one: one["rounds"][1]["sites"]["site-1"].update(sha256="0" * 64),
            "round 2: the server counts tensors 000",
        ),
        (
            lambda one: one["rounds"][1]["sites"].update({"site-1": one["rounds"][0]["sites"]["site-1"]}),
            "round 2: the server counts tensors",
        ),
        (
            lambda one: one["rounds"][0]["sites"].update({"site-1": one["rounds"][0]["sites"]["site-2"]}),
            "round 1: the server counts tensors",
        ),
        (
            lambda one: one["rounds"][0]["sites"]["site-1"].update(num_samples=3000),
            "round 1: the server has another report (num_samples)",
        ),
        (
            lambda one: one["final"]["sites"]["site-1"].update(seconds=9),
            "final: the server has another report (seconds)",
        ),
        (
            lambda one: one["rounds"].append({**one["rounds"][1], "round": 2}),
            "round 3: the server counts a result, and none",
        ),
    ],
    ids=["other tensors", "an earlier result", "another site's", "another weight", "another evaluation", "no line"],
)
def test_what_did_not_leave_and_is_counted(edit, fault, folder, capsys):
    edited(metrics(folder), edit)
    found, said = shown(capsys, kept(folder), "--verify", metrics(folder), code=1)
    assert len(found["faults"]) == 1
    assert found["faults"][0].startswith(fault)
    assert fault in said


def test_what_left_and_is_not_counted(folder, capsys):
    def leave_out(record):
        del record["rounds"][1]["sites"]["site-1"]
        record["rounds"][1]["left_out"] = {"site-1": {"code": "no_answer", "sentence": "no answer within 9 s"}}

    edited(metrics(folder), leave_out)
    found, _ = shown(capsys, kept(folder).parent, "--verify", metrics(folder))
    assert [one["counted"] for one in found["sent"]] == [True, False, True]
    assert found["sent"][1]["left_out"] == "no answer within 9 s"
    assert main(["ledger", str(kept(folder).parent), "--verify", str(metrics(folder))]) == 0
    assert "not counted: no answer within 9 s" in capsys.readouterr().out


def test_rounds_of_the_job_that_a_clone_continues_are_in_that_jobs_ledger(folder, capsys):
    edited(metrics(folder), lambda one: one["rounds"][0].update(job="earlier"))
    kept(folder).write_text("".join(kept(folder).read_text().splitlines(keepends=True)[1:]))
    found, _ = shown(capsys, kept(folder).parent, "--verify", metrics(folder))
    assert found["counted"] == 2


def test_a_round_that_was_trained_twice(folder, capsys):
    """Whichever of both arrived in the end."""
    lines = kept(folder).read_text().splitlines()
    again = json.dumps({**json.loads(lines[0]), "sha256": "1" * 64})
    kept(folder).write_text("\n".join([lines[0], again, *lines[1:], ""]))
    found, _ = shown(capsys, kept(folder).parent, "--verify", metrics(folder))
    assert [one["counted"] for one in found["sent"]] == [True, False, True, True]


@pytest.fixture
def evaluated(folder) -> Path:
    """The same after FLARE's cross-site evaluation: two models that are alike, and the site's own."""
    report = json.loads(metrics(folder).read_text())["final"]["sites"]["site-1"]
    tensors = {"tensor_bytes": 8, "sha256": "c" * 64}
    for line in ({"task": "submit_model", **tensors}, *[{"task": "validate", "tensor_bytes": 0, "sha256": "d" * 64,
                                                          "report": report}] * 3):  # fmt: skip
        ledger.append(kept(folder).parent, {"job": "simulate_job", "round": None, **line})
    models = {
        name: {"sha256": digest, "sites": {"site-1": report}, "left_out": {}}
        for name, digest in (("SRV_adapter.safetensors", None), ("SRV_best", None), ("site-1", "c" * 64))
    }
    edited(metrics(folder), lambda record: record.update(cross_site={"models": models, "left_out": {}}))
    return folder


def test_what_counts_in_a_cross_site_evaluation(evaluated, capsys):
    found, _ = shown(capsys, kept(evaluated).parent, "--verify", metrics(evaluated))
    assert found["counted"] == 7
    assert [one["counted"] for one in found["sent"]] == [True] * 7
    assert main(["ledger", str(kept(evaluated).parent)]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[4:6]] == [
        ["cross-site", "submit_model"], ["cross-site", "validate"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda models: models["site-1"].update(sha256="e" * 64), "cross-site: the server counts tensors eee"),
        (lambda models: models.update(again=models["SRV_best"]), "cross-site: the server counts a result twice"),
        (
            lambda models: models["SRV_best"]["sites"]["site-1"].update(seconds=9),
            "cross-site: the server has another report (seconds)",
        ),
    ],
    ids=["another model", "one evaluation too many", "another evaluation"],
)
def test_what_did_not_leave_in_a_cross_site_evaluation(edit, fault, evaluated, capsys):
    edited(metrics(evaluated), lambda record: edit(record["cross_site"]["models"]))
    found, _ = shown(capsys, kept(evaluated), "--verify", metrics(evaluated), code=1)
    assert found["faults"][0].startswith(fault)


def test_a_model_of_its_own_that_does_not_count_has_its_reason(evaluated, capsys):
    def left_out(record):
        del record["cross_site"]["models"]["site-1"]
        record["cross_site"]["left_out"]["site-1"] = {"code": "bad_result", "sentence": "it is no tensors"}

    edited(metrics(evaluated), left_out)
    found, _ = shown(capsys, kept(evaluated).parent, "--verify", metrics(evaluated))
    (own,) = [one for one in found["sent"] if one["task"] == "submit_model"]
    assert (own["counted"], own["left_out"]) == (False, "it is no tensors")


def test_starts_held_back_results_and_reasons(tmp_path, capsys):
    for entry in (
        {"task": "open", "round": None, "asks": {}},
        {"task": "train", "round": 0, "reason": {"code": "held_back"}, "held_back": "payload\x1b is not"},
        {"task": "open", "round": None, "asks": {}},
        {"task": "train", "round": 1, "reason": {"code": "too_slow"}},
        {"task": "train", "round": 2, "tensor_bytes": 12, "sha256": "ab" * 32, "report": {}},
    ):
        ledger.append(tmp_path, {"job": "J", **entry})
    found, _ = shown(capsys, tmp_path)
    assert len(found["opened"]) == 2
    assert (found["held_back"], found["bytes"], found["counted"], found["site"]) == (1, 12, None, None)
    assert main(["ledger", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "and again" in text.splitlines()[0]
    assert "held back: payload  is not" in text
    assert "nothing but a reason left: too_slow" in text
    assert "in all 1 result(s) left, with 12 bytes of tensors; 1 held back" in text


def test_a_line_that_a_power_cut_has_cut_off(tmp_path, capsys):
    """It spoils neither the next line nor the command."""
    path = tmp_path / "egress.jsonl"
    ledger.append(tmp_path, {"job": "J", "task": "open", "round": None})
    path.write_text(path.read_text() + '{"time": "2026-01')
    ledger.append(tmp_path, {"job": "J", "task": "train", "round": 0, "tensor_bytes": 4, "sha256": "a", "report": {}})
    found, _ = shown(capsys, tmp_path)
    assert (found["cut_off"], found["bytes"]) == (1, 4)
    assert len(path.read_text().splitlines()) == 3


def spoiled_line(**damage):
    line = {"time": "T", "job": "J", "task": "train", "round": 0, "tensor_bytes": 1, **damage}
    return lambda folder: kept(folder).write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: kept(folder).unlink(), "cannot be read (No such file or directory)"),
        (lambda folder: kept(folder).write_text("words\n"), "is no ledger of a site: it has no line of JSON"),
        (lambda folder: kept(folder).write_text("[1]\n"), "is no ledger of a site"),
        (lambda folder: kept(folder).write_text("[" * 100_000), "is no ledger of a site: it has no line of JSON"),
        (spoiled_line(reason=3), "is no ledger of a site: field 'reason'"),
        (spoiled_line(round=1e999), "is no ledger of a site: field 'round'"),
        (spoiled_line(tensor_bytes=1e999), "is no ledger of a site: field 'tensor_bytes'"),
        (spoiled_line(sha256=5), "is no ledger of a site: field 'sha256' is 5"),
        (lambda folder: metrics(folder).write_text("[" * 100_000), "metrics.json: is not valid JSON"),
        (
            lambda folder: edited(metrics(folder), lambda one: (one.update(job="X"), one.update(rounds=[]))),
            "metrics.json: is of job X; the ledger is of job simulate_job",
        ),
        (lambda folder: metrics(folder).unlink(), "metrics.json: cannot be read (No such file or directory)"),
        (lambda folder: metrics(folder).write_text("[]"), "is no metrics.json, or one of an earlier version"),
        (
            lambda folder: edited(metrics(folder), lambda one: one["rounds"][0]["sites"]["site-1"].pop("sha256")),
            "is no metrics.json, or one of an earlier version (it has no 'sha256')",
        ),
        (
            lambda folder: shutil.rmtree(kept(folder).parent / "app_site-1"),
            "--name: is needed, as nothing beside the ledger says whose it is",
        ),
    ],
)
def test_mistakes_are_one_sentence(spoil, message, folder, capsys):
    spoil(folder)
    assert main(["ledger", str(kept(folder).parent), "--verify", str(metrics(folder))]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert not said.out
