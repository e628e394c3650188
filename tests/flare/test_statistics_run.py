"""Stages of statistics at the server and at sites, with egress filters and ledgers between them, and no process."""

import contextlib
import json
import uuid
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs

from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from helpers import changed
from pt_peft import reasons
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import SITE_FILE, read_file, site_context, write_pair
from pt_peft.errors import ReasonedError, UserError
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.statistics import stages
from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.statistics.moments import COUNTS, SECOND
from pt_peft.worker.handle import Patience
from pt_peft.worker.request_handler import RequestHandler
from pt_peft_flare.__main__ import main
from pt_peft_flare.federated_run import FederatedRun
from pt_peft_flare.filters import EgressFilter
from pt_peft_flare.learner import SiteJob
from pt_peft_flare.messages import SINCE, STAGE, TAKEN, failure, reason_of
from pt_peft_flare.persistor import EXCHANGE
from pt_peft_flare.progress import progress
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.site_tasks import JobFailed, SiteTask
from pt_peft_flare.tensorboard_receiver import TensorBoardReceiver

NAMES = ["site-1", "site-2", "site-3"]


class Stopped(Exception):
    """The server's process has died."""


class Federation:
    """A server and three sites of one process, for one job or for several of which each continues the one before."""

    def __init__(self, folder: Path, experiment: Experiment, site, limits: Limits | None = None):
        folder.mkdir(exist_ok=True)
        self.folder, self.experiment = folder, experiment
        settings = site.model_copy(update={"limits": limits or Limits.open()})
        self.cipher = None
        if experiment.encryption:
            write_pair(folder / "keys")
            settings = settings.model_copy(update={"encryption_contexts": str(folder / "keys")})
            key = site_context(read_file(folder / "keys" / SITE_FILE), "site")
            self.cipher = Cipher(key, Layout(make_trainer(experiment, site).exchange.up(0)), 1e4)
        self.site = settings.model_dump(mode="json")
        self.trainer = make_trainer(experiment, settings)
        self.jobs: list[str] = []
        self.asked: list[str] = []
        self.saved: dict[str, Any] = {}
        self.silent: dict[str, set[str]] = {}
        """By task, in words, the sites that do not answer it."""
        self.tamper: Any = None
        """Changes what a learner gives to its filter."""

    def start(self, die_after: int | None = None, once: bool = False) -> dict[str, Any]:
        """Runs a job that continues the last one, and returns its record; its server dies after so many answers.

        A silent site is so for a task whenever it is asked, or `once`.
        """
        self.jobs.append(str(uuid.uuid4()))
        self.asked, self.die_after, self.once = [], die_after, once
        for name in ("server", *NAMES):
            run = self._run_dir(name)
            (run / f"app_{name}" / "config").mkdir(parents=True)
            (run / f"app_{name}" / "config" / "experiment.json").write_text(self.experiment.to_json())
            local = self.folder / name / "local"
            local.mkdir(parents=True, exist_ok=True)
            (local / "site.json").write_text(json.dumps(self.site))
        self.handlers = {name: self._handler(name) for name in NAMES}
        self.filters = {name: self._filter() for name in NAMES}
        initial = initial_exchanged(self.experiment, self.trainer.exchange, self.trainer.initial)
        persistor: Any = SimpleNamespace(
            load=lambda fl_ctx: make_model_learnable(initial, {EXCHANGE: self.trainer.exchange.to_json()}),
            save_as=self._save,
        )
        self.receiver = TensorBoardReceiver()
        self.receiver.handle_event(EventType.START_RUN, self.context("server"))
        self.run = FederatedRun(self.context("server"), persistor, self)
        try:
            self.run.complete()
        finally:
            self.receiver.handle_event(EventType.END_RUN, self.context("server"))
        return json.loads((self._run_dir("server") / "metrics.json").read_text())

    def _save(self, name: str, learnable: Any, fl_ctx: Any) -> None:
        self.saved[name] = learnable
        header = {**adapter_header(self.experiment), **learnable["meta"]}
        save_adapter(self.folder / name, learnable["weights"], header)

    def ledger(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self._run_dir(name) / "egress.jsonl").read_text().splitlines()]

    def _run_dir(self, name: str, job: int = -1) -> Path:
        return self.folder / name / self.jobs[job]

    def _handler(self, name: str) -> RequestHandler:
        handler = RequestHandler()
        earlier = str(self._run_dir(name, -2)) if len(self.jobs) > 1 else None
        opening: Any = {
            "experiment": self.experiment.model_dump(mode="json"), "site": self.site, "name": name, "names": NAMES,
            "run_dir": str(self._run_dir(name)), "continues": earlier, "threads": 1,
        }  # fmt: skip
        handler.open(opening, {})
        return handler

    def _filter(self) -> EgressFilter:
        made: Any = EgressFilter()
        made._exchange = self.trainer.exchange
        return made

    def context(self, name: str, task: str = "") -> Any:
        run, job = self._run_dir(name), self.jobs[-1]
        workspace = SimpleNamespace(
            root_dir=str(self.folder / name),
            get_run_dir=lambda job: str(self.folder / name / job),
            get_app_config_dir=lambda job: str(run / f"app_{name}" / "config"),
            get_site_config_dir=lambda: str(self.folder / name / "local"),
        )
        meta = {JobMetaKey.CLONED_FROM.value: self.jobs[-2]} if len(self.jobs) > 1 else {}
        props = {FLContextKey.TASK_NAME: task, FLContextKey.JOB_META: meta}
        return SimpleNamespace(
            get_prop=lambda key, default=None: props.get(key, default),
            get_engine=lambda: SimpleNamespace(
                get_workspace=lambda: workspace,
                new_context=lambda: contextlib.nullcontext(FLContext()),
                fire_event=self.receiver.handle_event,
            ),
            get_job_id=lambda: job,
            get_identity_name=lambda: name,
            get_peer_context=lambda: None,
            get_process_type=lambda: ProcessType.SERVER_JOB if name == "server" else ProcessType.CLIENT_JOB,
        )

    def site_names(self) -> list[str]:
        return NAMES

    def present_sites(self, silence_s: int) -> list[str]:
        return NAMES

    def event(self, event_type: str) -> None:
        pass

    def event_with(self, event_type: str, key: str, data: object) -> None:
        pass

    def ask(self, task: SiteTask, accept: Any) -> RoundResults[Any]:
        if len(self.asked) == self.die_after:
            raise Stopped
        self.asked.append(task.when)
        results = RoundResults(accept, self.run.cleared)
        for delivery in task.deliveries:
            for name in delivery.targets:
                if name not in self.silent.get(task.when, ()):
                    self._answer(name, task, delivery, results)
                elif self.once:
                    self.silent[task.when].remove(name)
        results.close({name: reasons.NoAnswer(seconds=1) for name in task.targets})
        return results

    def _answer(self, name: str, task: SiteTask, delivery: Any, results: RoundResults[Any]) -> None:
        meta = {SINCE: delivery.since, TAKEN: delivery.taken, STAGE: task.stage and task.stage.name}
        down = DXO(DataKind.WEIGHTS, data=delivery.payload, meta=meta).to_shareable()
        down.set_header(AppConstants.CURRENT_ROUND, task.round_number)
        handler: Any = self.handlers[name]
        worker: Any = SimpleNamespace(
            call=lambda request, message=None, tensors=None, patience=None: handler.requests[request](message, tensors)
        )
        work: Any = SimpleNamespace()
        limits, exchange = handler.site.limits, self.trainer.exchange
        job = SiteJob(self.experiment, name, self._run_dir(name), worker, self.cipher, exchange, limits, work)
        try:
            result = job.do(task.name, down, Patience())
            if self.tamper:
                self.tamper(name, task, result)
            shareable = result.to_shareable()
        except ReasonedError as error:
            shareable = failure(error.reason)
        shareable.set_header(AppConstants.CURRENT_ROUND, task.round_number)
        left = self.filters[name].process(shareable, self.context(name, task.name))
        results.arrived(name)
        if left.get_return_code() != "OK":
            results.fail(name, reason_of(left))
            return
        model = FLModelUtils.from_shareable(fobs.loads(fobs.dumps(left)))
        model.meta["client_name"] = name
        results.add(name, model)


@pytest.fixture(autouse=True)
def decomposers():
    flare_decomposers.register()


@pytest.fixture
def both(tiny):
    """A closed form before the one round and after it."""
    return changed(tiny, head={"start": "ridge", "finish": "ridge"}, federation={"rounds": 1, "min_sites": 2})


ORDER = [
    *("counts at the start", "moments at the start", "choice at the start", "round 1"),
    *("counts at the finish", "moments at the finish", "choice at the finish", "final evaluation"),
]


def reference(experiment, site, **options):
    return federate(make_trainer(experiment, site), load_sites(experiment, site, NAMES), **options).tensors


def final(federation):
    return federation.saved["adapter.safetensors"]["weights"]


def test_a_run_equals_the_plain_loop_and_says_what_it_did(both, site, tmp_path):
    federation = Federation(tmp_path, both, site)
    record = federation.start()
    assert federation.asked == ORDER
    assert greatest_difference(final(federation), reference(both, site)) == 0
    assert [(one["when"], one["stage"], one["round"]) for one in record["statistics"]] == [
        (stage.when, stage.name, stage.round_number) for stage in stages(both)
    ]
    made = federation.saved["adapter.safetensors"]["meta"]["head"]
    assert made == record["statistics"][-1]["head"]
    assert (made["kind"], made["sites"], made["images"]) == ("ridge", NAMES, 120)
    assert record["statistics"][2]["head"]["penalty"] in both.head.penalties
    assert [one["head"] for one in record["statistics"][:2]] == [None, None]
    moments = record["statistics"][1]["sites"]["site-1"]
    assert (moments["num_samples"], moments["classes_left_out"]) == (40, 0)
    assert moments["bytes_out"] == 8 * (4 + 4 * 32 + 32 * 33 // 2)
    said = progress(federation.run.record.content, record["rounds"], 1, 6, dict.fromkeys(NAMES, "answered"), {})
    assert (said["finished_stages"], said["stages"]) == (6, 6)
    sent = [one["sites"]["site-1"]["bytes_out"] for one in record["statistics"] + record["rounds"]]
    assert said["sites"]["site-1"]["bytes_out"] == sum(sent)
    assert said["sites"]["site-1"]["precision"] == "float32"
    assert federation.saved["adapter.safetensors"]["meta"]["precision"] == ["float32"]
    counts = federation.saved["adapter.safetensors"]["meta"]["class_counts"]
    labels = [one.train.labels for one in load_sites(both, site, NAMES).values()]
    assert counts["counts"] == np.bincount(np.concatenate(labels), minlength=4).tolist()
    assert (counts["split"], counts["images"]) == ("train", 120)


def test_sites_that_compute_in_different_precisions_are_told_apart(both, site, tmp_path):
    """Also by a clone, whose own answers are all in one."""
    federation = Federation(tmp_path, changed(both, training={"precision": "auto"}), site)

    def other_machine(name, task, result):
        report = result.data if task.when == "final evaluation" else result.meta["initial_metrics"]
        report["precision"] = "bfloat16" if name == "site-2" and len(federation.jobs) == 1 else "float32"

    federation.tamper = other_machine
    with pytest.raises(Stopped):
        federation.start(die_after=5)
    record = federation.start()
    assert {name: one["precision"] for name, one in record["rounds"][0]["sites"].items()} == {
        "site-1": "float32", "site-2": "bfloat16", "site-3": "float32",
    }  # fmt: skip
    assert {one["precision"] for one in record["final"]["sites"].values()} == {"float32"}
    assert federation.saved["adapter.safetensors"]["meta"]["precision"] == ["bfloat16", "float32"]


def test_each_stage_is_a_line_of_the_ledger_that_the_lead_can_be_held_to(both, site, tmp_path, capsys):
    federation = Federation(tmp_path, both, site)
    federation.start()
    lines = federation.ledger("site-1")
    assert [(line["task"], line.get("stage")) for line in lines] == [
        *(("statistics", name) for name in ("counts", "moments", "choice")),
        ("train", None),
        *(("statistics", name) for name in ("counts", "moments", "choice")),
        ("validate", None),
    ]
    assert lines[1]["tensors"].keys() == {"statistics/counts", "statistics/sums", "statistics/second"}
    assert lines[1]["l2_norm"] > 0
    run = federation._run_dir("site-1")
    metrics = federation._run_dir("server") / "metrics.json"
    assert main(["ledger", str(run), "--name", "site-1", "--verify", str(metrics)]) == 0
    shown = capsys.readouterr().out
    assert "the server counts 8 result(s) of this site; 8 of them are in this ledger" in shown
    assert "moments after 1 statistics" in " ".join(shown.split())
    record = json.loads(metrics.read_text())
    record["statistics"][1]["sites"]["site-1"]["sha256"] = "0" * 64
    metrics.write_text(json.dumps(record))
    assert main(["ledger", str(run), "--name", "site-1", "--verify", str(metrics)]) == 1
    assert "moments after 0: the server counts tensors 000000000000" in capsys.readouterr().err


@pytest.mark.parametrize("answers", range(1, len(ORDER)))
def test_a_clone_goes_on_between_any_two_stages(both, site, tmp_path, answers):
    federation = Federation(tmp_path, both, site)
    with pytest.raises(Stopped):
        federation.start(die_after=answers)
    record = federation.start()
    assert federation.asked == ORDER[answers:]
    assert greatest_difference(final(federation), reference(both, site)) == 0
    assert len(record["statistics"]) == 6
    assert federation.saved["adapter.safetensors"]["meta"]["head"]["sites"] == NAMES


def test_a_clone_draws_the_curves_of_all_rounds_once(both, site, tmp_path):
    """The first job's server dies after the second round; its own curves end there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    federation = Federation(tmp_path, changed(both, federation={"rounds": 3}), site)
    with pytest.raises(Stopped):
        federation.start(die_after=5)
    federation.start()
    for run, rounds in ((0, 2), (1, 3)):
        for name in ("global", *NAMES):
            events = EventAccumulator(str(federation._run_dir("server", run) / "tb_events" / name)).Reload()
            steps: dict[str, list[int]] = defaultdict(list)
            for tag in events.Tags()["scalars"]:
                steps[tag] = [point.step for point in events.Scalars(tag)]
            assert steps["train/loss"] == [*range(1, rounds + 1)]
            assert steps["val/loss"] == steps["val_auroc/a"] == [*range(rounds + run)]
            assert steps["bytes/out"] == steps["time/round_s"] == [*range(1, rounds + 1)]
            assert steps["test/loss"] == [3] * run
            assert steps["head/penalty"] == ([0, 3][: 1 + run] if name == "global" else [])


def test_a_site_that_is_late_for_a_stage_is_in_the_next(both, site, tmp_path):
    federation = Federation(tmp_path, both, site)
    federation.silent = {"moments at the start": {"site-2"}, "choice at the finish": {"site-1"}}
    record = federation.start()
    missed = [stages(both)[1], stages(both)[5]]
    expected = reference(both, site, absent=[("site-2", missed[0]), ("site-1", missed[1])])
    assert greatest_difference(final(federation), expected) == 0
    assert record["statistics"][1]["left_out"].keys() == {"site-2"}
    assert record["statistics"][1]["head"] is None
    assert record["statistics"][2]["head"]["sites"] == ["site-1", "site-3"]


def test_a_site_that_was_not_counted_is_left_out_of_the_sums_if_its_counts_say_so(both, site, tmp_path):
    """Three sites of ten images a class: two are more than one, so that a third is taken; one is not more than two."""
    federation = Federation(tmp_path, changed(both, federation={"min_sites": 1}), site)
    federation.silent = {"counts at the start": {"site-1", "site-2"}}

    def fewer(name, task, result):
        if task.when == "counts at the start":
            result.data[COUNTS] -= 1
            result.meta["initial_metrics"]["num_samples"] -= 4

    federation.tamper = fewer
    with pytest.raises(JobFailed, match="moments at the start, task 'statistics': 0 of 3 sites gave a valid result"):
        federation.start()
    reason = federation.ledger("site-1")[-1]["reason"]
    assert reason == {"code": "payload", "tensor": "statistics/federation_counts"}


def test_without_a_quorum_the_job_stops_with_what_it_has(both, site, tmp_path):
    federation = Federation(tmp_path, both, site)
    federation.silent = {"moments at the finish": {"site-1", "site-2"}}
    with pytest.raises(JobFailed, match="moments at the finish, task 'statistics': 1 of 3 sites"):
        federation.start()
    federation.silent = {}
    federation.start()
    assert federation.asked == ORDER[5:]


def test_rotating_tensors_are_brought_up_to_date_with_the_sums(tiny, site, tmp_path):
    """A site that missed the rounds gets what they have changed with the stage `moments`, and computes on that."""
    experiment = changed(
        tiny,
        method={"name": "sba", "options": {}},
        head={"finish": "ridge"},
        federation={"rounds": 2, "min_sites": 1},
    )
    federation = Federation(tmp_path, experiment, site)
    federation.silent = {"round 1": {"site-3"}, "round 2": {"site-3"}}
    federation.start()
    expected = reference(experiment, site, absent=[("site-3", 0), ("site-3", 1)])
    assert greatest_difference(final(federation), expected) == 0


def test_a_job_of_no_round(tiny, site, tmp_path):
    """Its head is the best and the final one."""
    experiment = changed(
        tiny, method={"name": "linear_probe", "options": {}}, head={"start": "lda"}, federation={"rounds": 0}
    )
    federation = Federation(tmp_path, experiment, site)
    record = federation.start()
    assert federation.asked == ["moments at the start", "choice at the start", "final evaluation"]
    assert record["best"]["rounds"] == 0
    assert federation.saved.keys() == {"adapter.safetensors", "best_adapter.safetensors"}
    assert greatest_difference(final(federation), reference(experiment, site)) == 0
    assert federation.saved["best_adapter.safetensors"]["meta"]["head"]["kind"] == "lda"


@pytest.mark.parametrize(
    "fields",
    [
        {"training": {"imbalance": "federation_weights"}},
        {"aggregation": {"name": "mean", "weighting": "class_samples"}},
    ],
)
def test_counts_for_weights_by_class(tiny, site, tmp_path, fields):
    """The server weighs by them; a site that was late for them is counted before its first round."""
    experiment = changed(tiny, **fields, federation={"min_sites": 2})
    federation = Federation(tmp_path, experiment, site)
    record = federation.start()
    assert federation.asked == ["counts at the start", "round 1", "round 2", "final evaluation"]
    assert greatest_difference(final(federation), reference(experiment, site)) == 0
    late = Federation(tmp_path / "late", experiment, site)
    late.silent = {"counts at the start": {"site-2"}}
    late.start(once=True)
    assert late.asked[:3] == ["counts at the start", "counts at the start", "round 1"]
    assert next(iter(late.run.record.rounds))["sites"].keys() == set(NAMES)
    assert greatest_difference(final(late), final(federation)) == 0
    assert [one["sites"].keys() for one in record["statistics"]] == [set(NAMES)]


def test_class_counts_outlive_the_server(tiny, site, tmp_path):
    experiment = changed(tiny, training={"imbalance": "federation_weights"})
    federation = Federation(tmp_path, experiment, site)
    with pytest.raises(Stopped):
        federation.start(die_after=2)
    federation.start()
    assert federation.asked == ["round 2", "final evaluation"]
    assert greatest_difference(final(federation), reference(experiment, site)) == 0


def learner_that(change):
    """Changes what a learner says of its sums."""

    def tamper(name, task, result):
        if name == "site-1" and task.when == "moments at the start":
            change(result)

    return tamper


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda result: result.data.update({"statistics/images": np.ones(9)}), {"what": "tensors"}),
        (lambda result: result.data.pop(SECOND), {"what": "tensors"}),
        (lambda result: result.data.update({SECOND: result.data[SECOND].astype("float32")}), "statistics/second"),
        (lambda result: result.data[SECOND].__setitem__(0, np.nan), "statistics/second"),
        (lambda result: result.data[COUNTS].__setitem__(0, 4.0), "statistics/counts"),
        (lambda result: result.meta["initial_metrics"].update(pixels=[1]), {"what": "report"}),
        (lambda result: result.meta.update({STAGE: "second_moments"}), {"what": "task"}),
        (lambda result: result.meta.update({STAGE: "counts"}), {"what": "tensors"}),
    ],
)
def test_the_filter_lets_nothing_pass_that_is_not_declared(both, site, tmp_path, change, reason):
    experiment = changed(both, head={"finish": "trained", "penalties": [0.1], "temperature": False})
    federation = Federation(tmp_path, experiment, site, Limits.open().model_copy(update={"min_images_per_class": 5}))
    federation.tamper = learner_that(change)
    record = federation.start()
    expected = reason if isinstance(reason, dict) else {"what": "tensors", "tensor": reason}
    line = federation.ledger("site-1")[1]
    assert line["reason"].items() >= {"code": "held_back", **expected}.items()
    assert "tensors" not in line
    assert record["statistics"][1]["left_out"].keys() == {"site-1"}


def test_a_site_none_of_whose_classes_has_enough_images_sends_nothing(both, site, tmp_path):
    federation = Federation(tmp_path, both, site, Limits.open().model_copy(update={"min_images_per_class": 11}))
    with pytest.raises(JobFailed, match="min_train_images"):
        federation.start()
    assert "tensors" not in federation.ledger("site-1")[-1]


def test_limits_on_images_and_bytes(both, site, tmp_path):
    for number, (fields, field) in enumerate(
        (({"bytes_per_round": 5279}, "bytes_per_round"), ({"min_train_images": 41}, "min_train_images"))
    ):
        federation = Federation(tmp_path / str(number), both, site, Limits.open().model_copy(update=fields))
        with pytest.raises(JobFailed, match=field):
            federation.start()
        last = federation.ledger("site-1")[-1]["reason"]
        assert (last["code"], last["field"]) == ("outside_limits", field)


def test_a_stage_that_the_experiment_does_not_have(both, site, tmp_path):
    federation = Federation(tmp_path, both, site)
    federation.start()
    handler: Any = federation.handlers["site-1"]
    for stage, number in (("second", 0), ("counts", 7)):
        with pytest.raises(UserError, match="the experiment has no stage"):
            handler.statistics({"stage": stage, "round": number, "since": 0}, {})


CKKS = {"scheme": "ckks"}


def of_sites(federation) -> list[dict]:
    """The final adapters at the sites."""
    return [load_adapter(federation._run_dir(name) / "final_adapter.safetensors")[0] for name in NAMES]


@pytest.mark.parametrize("kind", ["ridge", "lda"])
def test_encrypted_statistics_give_the_same_classifier(tiny, site, tmp_path, kind, capsys):
    """Sites solve for it themselves, alike to the bit; `decrypt` makes the same of the server's file."""
    pytest.importorskip("tenseal")
    plain = changed(tiny, head={"start": kind, "finish": kind}, federation={"rounds": 1})
    federation = Federation(tmp_path, changed(plain, encryption=CKKS), site)
    record = federation.start()
    assert len(federation.asked) == len(stages(plain)) + 2
    first, *others = of_sites(federation)
    assert all(greatest_difference(first, other) == 0 for other in others)
    expected = reference(plain, site)
    assert (
        greatest_difference(first, expected) <= 1e-4
    )  # of a round of AdamW, which enlarges the last bits of its start
    encrypted = tmp_path / "encrypted_adapter.safetensors"
    held = load_adapter(encrypted)[0]
    assert {value.dtype for key, value in held.items() if "ciphertext" in key} == {np.dtype("uint8")}
    assert "head.weight" not in held
    out, key = tmp_path / "adapter.safetensors", tmp_path / "keys" / SITE_FILE
    assert main(["decrypt", str(encrypted), "--context", str(key), "--out", str(out)]) == 0
    tensors, header = load_adapter(out)
    assert header["class_counts"]["split"] == "val", "the server could not read how many training images there are"
    assert greatest_difference(tensors, first) == 0
    assert header["head"] == record["statistics"][-1]["head"]
    moments = [line for line in federation.ledger("site-1") if line.get("stage") == "moments"]
    assert [line["encrypted"] for line in moments] == ["ckks", "ckks"]
    assert moments[0]["holds"].keys() == {"statistics/counts", "statistics/sums", "statistics/second"}
    assert not any("tensors" in line for line in moments)


@pytest.mark.parametrize("answers", [2, 6])
def test_an_encrypted_clone_goes_on_too(both, site, tmp_path, answers):
    pytest.importorskip("tenseal")
    federation = Federation(tmp_path, changed(both, encryption=CKKS), site)
    with pytest.raises(Stopped):
        federation.start(die_after=answers)
    federation.start()
    assert federation.asked == ORDER[answers:]
    assert greatest_difference(of_sites(federation)[0], reference(both, site)) <= 1e-4


def test_an_encrypted_job_of_no_round(tiny, site, tmp_path, capsys):
    pytest.importorskip("tenseal")
    fields = {"head": {"start": "ridge"}, "federation": {"rounds": 0}, "encryption": CKKS}
    experiment = changed(tiny, method={"name": "linear_probe", "options": {}}, **fields)
    federation = Federation(tmp_path / "probe", experiment, site)
    federation.start()
    expected = reference(changed(experiment, encryption=None), site)
    assert greatest_difference(of_sites(federation)[0], expected) <= 1e-6
    arguments = ["--context", str(tmp_path / "probe" / "keys" / SITE_FILE), "--out", str(tmp_path / "out.safetensors")]
    assert main(["decrypt", str(tmp_path / "probe" / "encrypted_adapter.safetensors"), *arguments]) == 0
    assert greatest_difference(load_adapter(tmp_path / "out.safetensors")[0], of_sites(federation)[0]) == 0
    # Of more than a classifier the server's file does not have all.
    lora = Federation(tmp_path / "lora", changed(tiny, **fields), site)
    lora.start()
    assert of_sites(lora)[0].keys() > {"head.weight"}
    arguments[1] = str(tmp_path / "lora" / "keys" / SITE_FILE)
    assert main(["decrypt", str(tmp_path / "lora" / "encrypted_adapter.safetensors"), *arguments]) == 1
    assert "holds the classifier alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda result: result.data.update({SECOND: np.ones(528)}), {"what": "tensors"}),
        (lambda result: result.meta["initial_metrics"].update(num_samples=39), {"what": "tensors"}),
    ],
)
def test_the_filter_reads_what_is_in_the_ciphertexts(both, site, tmp_path, change, reason):
    pytest.importorskip("tenseal")
    experiment = changed(both, encryption=CKKS, head={"finish": "trained"})
    federation = Federation(tmp_path, experiment, site)
    federation.tamper = learner_that(change)
    federation.start()
    line = federation.ledger("site-1")[1]
    assert line["reason"].items() >= {"code": "held_back", **reason}.items()


def test_a_release_with_noise(tiny, site, tmp_path):
    """What is released, what is said of it, and what the server does not take for a release."""
    settings = {"noise_multiplier": 2.0, "max_feature_norm": 8.0, "delta": 1e-5, "projection": 6}
    experiment = changed(
        tiny,
        method={"name": "linear_probe", "options": {}},
        head={"start": "lda"},
        federation={"rounds": 0},
        privacy={"statistics": settings},
    )
    limits = Limits.open().model_copy(update={"max_epsilon": 2.0})
    federation = Federation(tmp_path / "secret", experiment, site, limits)
    record = federation.start()
    spent = record["statistics"][0]["sites"]["site-1"]["epsilon"]
    assert spent == pytest.approx(1.993, abs=2e-3)
    assert federation.saved["adapter.safetensors"]["meta"]["privacy"]["statistics"]["epsilon"] == spent
    line = federation.ledger("site-1")[0]
    assert line["privacy"] == {"randomness": "secret", "epsilon": spent, "statistics": settings}
    assert line["tensors"]["statistics/second"]["shape"] == [21]
    assert record["statistics"][0]["sites"]["site-1"]["classes_left_out"] == 0

    public = changed(experiment, privacy={"randomness": "insecure_from_public_seed"})
    repeated = Federation(tmp_path / "public", public, site)
    repeated.start()
    assert greatest_difference(final(repeated), reference(public, site)) == 0

    def enlarged(name, task, result):
        if name == "site-2" and task.when == "moments at the start":
            result.data[SECOND][0] = 200.0

    lying = Federation(tmp_path / "lying", public, site)
    lying.tamper = enlarged
    assert lying.start()["statistics"][0]["left_out"].keys() == {"site-2"}
