"""What a site says of a failure: no text of the site's own leaves it, whatever went wrong there."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ProcessType, ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from PIL import Image

from helpers import changed
from pt_peft import reasons
from pt_peft.encryption.contexts import read_file
from pt_peft.environment import own_code
from pt_peft.errors import BackboneMismatch, OutsideLimits, ReasonedError, UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, TensorSpec, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.federation.known_names import known_names
from pt_peft.federation.reports import EvaluationReport, TrainingReport, rounded_loss
from pt_peft.privacy.budget import FILE_NAME as BUDGET
from pt_peft.reasons import Reason, ServerReason, SiteReason, read_reason
from pt_peft.schema import parse
from pt_peft.worker import frames
from pt_peft.worker.answering import _reason_of
from pt_peft.worker.handle import WorkerError, _error
from pt_peft.worker.request_handler import RequestHandler
from pt_peft.worker.requests import Opening
from pt_peft_flare.filters import EgressFilter
from pt_peft_flare.messages import REASON, RETURN_CODES, failure, reason_of
from pt_peft_flare.round_results import LeftOut, RoundResults
from pt_peft_flare.run_context import read_site

SECRETS = ("Anna Bell", "Müller 1934-07-12", "St Mary's", "mrn_8675309", "8675309", "biopsy result", "O'Brien", "xq7zk")
"""Texts of the site's own: names with blanks and quotes, numbers of patients, columns, values."""
FOLDER = "St Mary's patients of Anna Bell"
CLASSES = get_args(SiteReason)
SERVERS = get_args(ServerReason)


class Workspace(SimpleNamespace):
    """A site's workspace of FLARE's."""

    folder: Path

    def get_run_dir(self, job):
        return str(self.folder / "run")

    def get_app_config_dir(self, job):
        return str(self.folder / "config")

    def get_site_config_dir(self):
        return str(self.folder / "local")


@pytest.fixture
def fl_ctx(tmp_path, tiny) -> Any:
    """The context of a site whose workspace lies in a folder with a name of the site's own."""
    workspace = Workspace(folder=tmp_path / FOLDER)
    for name in ("run", "config", "local"):
        (workspace.folder / name).mkdir(parents=True)
    (workspace.folder / "config" / "experiment.json").write_text(tiny.to_json())
    (workspace.folder / "local" / "site.json").write_text('{"limits": null}')
    return SimpleNamespace(
        folder=workspace.folder,
        get_prop=lambda key, default=None: "train" if key == FLContextKey.TASK_NAME else default,
        get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace),
        get_job_id=lambda: "job",
        get_identity_name=lambda: "site-1",
        get_peer_context=lambda: None,
        get_process_type=lambda: ProcessType.CLIENT_JOB,
    )


def leaves(error: ReasonedError, fl_ctx: Any) -> Shareable:
    """What leaves the site for an error in a worker, past the socket, the learner and the filter."""
    raised = _error(json.loads(json.dumps(frames.error_fields(error))))
    assert type(raised) is type(error)
    assert str(raised) == str(error), "the site's own log has all of it"
    return egress().process(failure(raised.reason), fl_ctx)


def egress() -> EgressFilter:
    """A filter that knows what is exchanged, and logs nothing."""
    made = EgressFilter()
    made.log_error = lambda *arguments, **keywords: None  # pyright: ignore[reportAttributeAccessIssue]
    made._exchange = Exchange({"head.bias": TensorSpec((4,), "float32")}, frozenset({"head.bias"}))
    return made


def nothing_of(secrets: Iterator[str] | tuple[str, ...], shareable: Shareable) -> None:
    said = json.dumps(shareable, default=str)
    # In every form in which JSON or an error may show a text.
    plain = said.encode().decode("unicode_escape", errors="replace")
    for secret in secrets:
        for shown in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]):
            assert shown not in said, shareable
            assert shown not in plain, shareable


# --- the list itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*CLASSES, *SERVERS])
def test_a_field_is_a_literal_a_number_or_words_that_are_cleared(reason):
    """So a new reason cannot carry a text that nobody checks."""
    for name, field in reason.model_fields.items():
        kinds = {part for part in (field.annotation, *get_args(field.annotation)) if part is not type(None)}
        if get_origin(field.annotation) is Literal:
            continue
        if float in kinds:
            assert not kinds - {float}, name
            continue
        given = ("xq7zk",) if field.default == () else "xq7zk"
        cleared = reason.model_construct(**{name: given}).cleared(frozenset())
        assert not getattr(cleared, name), name


def test_each_code_stands_for_one_class_and_each_makes_a_sentence():
    codes = [one.model_fields["code"].default for one in CLASSES]
    assert len(set(codes)) == len(codes)
    numbers = {"seconds": 3, "held": 1, "needed": 2, "total": 3.5, "spent": 1, "limit": 3, "what": "report"}
    for one in CLASSES:
        reason = one(**{name: value for name, value in numbers.items() if name in one.model_fields})
        assert "{" not in reason.sentence()
        assert not reason.sentence().endswith(".")
        assert read_reason(reason.model_dump_json()) == reason


def test_the_words_of_a_refusal():
    error = OutsideLimits("bytes_per_round", "4000 bytes a round", "allowed: 1000")
    assert error.reason.to_json() == {
        "code": "outside_limits",
        "field": "bytes_per_round",
        "asked": [4000.0, "bytes", "a", "round"],
        "allowed": [1000.0],
    }
    left = error.reason.cleared(known_names(None, None))
    assert left.sentence() == (
        "the site's limits refuse this (field 'bytes_per_round'): it asks for 4000; allowed: 1000"
    )
    methods = OutsideLimits("methods", "method norm", "allowed: lora, xq7zk")
    sentence = methods.reason.cleared(known_names(None, None)).sentence()
    assert sentence.endswith("it asks for method norm"), "what a site lists stays in its log"


def test_numbers_are_rounded():
    assert reasons.WorkerTimeout(seconds=1.23456789).seconds == 1.23457


def test_of_a_dotted_name_the_known_part_is_kept():
    reason = reasons.SiteSettings(field="data.images.Anna Bell").cleared(known_names(None, None))
    assert reason == reasons.SiteSettings(field="data.images")
    assert reasons.Data(field="Anna Bell.data").cleared(known_names(None, None)) == reasons.Data()


def test_what_the_lead_knows(tiny):
    known = known_names(tiny, None)
    assert {"training.learning_rate", "limits.methods", "bytes_per_round", "val.confusion", "lora", "lora_vpt"} <= known
    assert {"method.options.vpt_deep.num_prompts", "patch_size", "a"} <= known
    assert not any(secret in known for secret in SECRETS)


# --- every error, whatever it holds ------------------------------------------------------------------------------

text = st.one_of(st.sampled_from(SECRETS), st.text(alphabet="xq7zk/\\ '\"`…\n", max_size=20)).map(
    lambda one: f"xq7zk {one} xq7zk"
)
errors = st.one_of(
    st.builds(UserError, text, text),
    st.builds(BackboneMismatch, text, text),
    st.builds(OutsideLimits, text, text, text),
    st.builds(TensorError, text, text),
    st.builds(WorkerError, text),
    st.builds(
        lambda message, reason: UserError(message, message).told_as(reason),
        text,
        st.sampled_from([reasons.Data(), reasons.Backbone(), reasons.SiteSettings(), reasons.ExperimentInvalid()]),
    ),
    st.builds(
        lambda message, kind: WorkerError(message, _reason_of(kind(28, message))),
        text,
        st.sampled_from([ValueError, OSError, MemoryError, KeyError, RuntimeError]),
    ),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(errors)
def test_no_text_of_an_error_leaves(fl_ctx, error):
    nothing_of(("xq7zk",), leaves(error, fl_ctx))


def result(tensors: dict, report: dict) -> Shareable:
    made = DXO(DataKind.WEIGHTS, data=tensors, meta={MetaKey.INITIAL_METRICS: report}).to_shareable()
    made.set_header(AppConstants.CURRENT_ROUND, 0)
    return made


def test_what_holds_a_result_back_says_nothing_of_it(fl_ctx):
    report = {"num_samples": 1, "train_loss": 1.0, "seconds": 1.0, "val": None, "code": own_code().model_dump()}
    for content, expected in (
        (make_reply(ReturnCode.OK), {"what": "error"}),  # no DXO
        (result({"head.bias": np.zeros(4)}, {**report, "xq7zk": 1}), {"what": "report"}),
        (result({"head.bias": np.zeros(4)}, {**report, "seconds": "xq7zk"}), {"what": "report", "field": "seconds"}),
        (result({"xq7zk": np.zeros(4)}, report), {"what": "tensors"}),
        (result({"head.bias": np.zeros(4)}, report), {"what": "tensors", "tensor": "head.bias"}),  # a wrong dtype
    ):
        left = egress().process(content, fl_ctx)
        assert reason_of(left).to_json() == {"code": "held_back", **expected}
        nothing_of(("xq7zk",), left)
    assert "xq7zk" in (fl_ctx.folder / "run" / "egress.jsonl").read_text(), "the site's ledger has it"


@pytest.mark.parametrize(
    "header",
    [
        "Anna Bell",
        '{"code": "data", "field": "Anna Bell"}',
        '{"code": "Anna Bell"}',
        ["Anna Bell"],
        {"Anna": "Bell"},
        5,
    ],
)
def test_a_learner_that_was_tampered_with_says_no_more(fl_ctx, header):
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, header)
    reply.set_header("more", "Anna Bell")
    reply["data"] = "Anna Bell"
    left = EgressFilter().process(reply, fl_ctx)
    nothing_of(("Anna", "Bell"), left)


def test_flares_own_return_codes_leave_and_no_others(fl_ctx):
    left = EgressFilter().process(make_reply(ReturnCode.TASK_UNKNOWN), fl_ctx)
    assert reason_of(left) == reasons.Flare(return_code=ReturnCode.TASK_UNKNOWN)
    left = EgressFilter().process(make_reply("Anna Bell"), fl_ctx)
    assert reason_of(left) == reasons.Flare()


# --- every fault of a site that can be made ----------------------------------------------------------------------


def table(folder: Path, rows: list[dict[str, str]], images: bool = True) -> dict[str, Any]:
    """A site's section ``data``, with images of patients."""
    (folder / "images").mkdir(exist_ok=True)
    for row in rows if images else []:
        Image.new("RGB", (20, 18), "red").save(folder / "images" / next(iter(row.values())))
    with open(folder / "table of Anna Bell.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {"data": {"images": str(folder / "images"), "table": str(folder / "table of Anna Bell.csv")}}


def row(**fields: str) -> dict[str, str]:
    return {"file": "Anna Bell 8675309.png", "label": "biopsy result", "split": "train", **fields}


def other_columns(folder: Path) -> dict[str, Any]:
    return table(folder, [{"mrn_8675309": "Anna Bell 8675309.png", "biopsy result": "O'Brien"}])


def other_classes(folder: Path) -> dict[str, Any]:
    return table(folder, [row()])


def other_split(folder: Path) -> dict[str, Any]:
    return table(folder, [row(label="a", split="O'Brien")])


def no_image(folder: Path) -> dict[str, Any]:
    return table(folder, [row(label="a")], images=False)


def broken_image(folder: Path) -> dict[str, Any]:
    site = table(folder, [row(label="a")])
    (folder / "images" / "Anna Bell 8675309.png").write_bytes(b"Anna Bell")
    return site


def no_text(folder: Path) -> dict[str, Any]:
    site = table(folder, [row(label="a")])
    (folder / "table of Anna Bell.csv").write_bytes("Müller 1934-07-12".encode("utf-16"))
    return site


def broken_zip(folder: Path) -> dict[str, Any]:
    site = table(folder, [row(label="a")])
    (folder / "Anna Bell.zip").write_bytes(b"Anna Bell")
    return {"data": {**site["data"], "images": str(folder / "Anna Bell.zip")}}


def small_cache(folder: Path) -> dict[str, Any]:
    return {**table(folder, [row(label="a")]), "cache": str(folder / "Anna Bell"), "cache_gb": 1e-9}


def cache_is_a_file(folder: Path) -> dict[str, Any]:
    (folder / "Anna Bell").write_text("")
    return {**table(folder, [row(label="a")]), "cache": str(folder / "Anna Bell")}


def own_columns(folder: Path) -> dict[str, Any]:
    site = table(folder, [row(label="a")])
    return {"data": {**site["data"], "columns": {"label": "mrn_8675309"}}}


def own_classes(folder: Path) -> dict[str, Any]:
    site = table(folder, [row(label="a")])
    return {"data": {**site["data"], "classes": {"biopsy result": ["Anna Bell"]}}}


def one_value_for_two_classes(folder: Path) -> dict[str, Any]:
    site = table(folder, [row(label="a")])
    return {"data": {**site["data"], "classes": {"a": ["Anna Bell"], "b": ["Anna Bell"]}}}


DATA = [
    (lambda folder: {}, reasons.Data(field="data.table")),
    (lambda folder: {"data": {"images": str(folder / "Anna Bell"), "table": str(folder / "O'Brien.csv")}}, None),
    (other_columns, None),
    (other_classes, None),
    (other_split, None),
    (no_image, None),
    (broken_image, None),
    (no_text, None),
    (broken_zip, None),
    (small_cache, None),
    (cache_is_a_file, None),
    (own_columns, None),
    (own_classes, reasons.Data(field="data.classes")),
    (one_value_for_two_classes, reasons.Data(field="data.classes")),
]


def open_worker(experiment: Experiment, site: dict[str, Any], folder: Path) -> RequestHandler:
    handler = RequestHandler()
    opening: Opening = {
        "experiment": experiment.model_dump(mode="json"),
        "site": site,
        "name": "site-1",
        "names": ["site-1"],
        "run_dir": str(folder / "run"),
        "continues": None,
        "threads": 1,
    }
    handler.open(opening, {})
    return handler


def raised(act: Callable[[], object]) -> ReasonedError:
    """The error of a worker, as its host hands it on."""
    try:
        act()
    except (UserError, TensorError) as error:
        return error
    except Exception as error:
        return WorkerError(f"{type(error).__name__}: {error}", _reason_of(error))
    pytest.fail("nothing was wrong")


def checked(error: ReasonedError, fl_ctx: Any) -> Reason:
    """What leaves for `error`, after a look for everything of the site's in it."""
    left = leaves(error, fl_ctx)
    nothing_of(SECRETS, left)
    nothing_of((fl_ctx.folder.name, fl_ctx.folder.parent.name, "table of", ".csv", ".png", ".zip"), left)
    return reason_of(left)


@pytest.mark.parametrize(("make", "expected"), DATA)
def test_faults_of_the_data(make, expected, tiny, site, fl_ctx):
    experiment = changed(tiny, data={"source": "site"})
    settings_ = site.model_dump(mode="json") | {"cache": str(fl_ctx.folder / "cache")} | make(fl_ctx.folder)
    handler = open_worker(experiment, settings_, fl_ctx.folder)
    error = raised(lambda: handler._data)
    reason = checked(error, fl_ctx)
    if expected:
        assert reason == expected
    else:
        assert reason.to_json()["code"] in {"data", "no_images", "internal"}, error


@pytest.mark.parametrize("source", ["npz", "image_folder", "ham10000", "isic2019", "fed_isic2019"])
@pytest.mark.parametrize("content", [b"Anna Bell", None])
def test_faults_of_other_sources(source, content, tiny, site, fl_ctx):
    experiment = changed(tiny, data={"source": "site"})
    path = fl_ctx.folder / "Anna Bell 8675309"
    if content:
        path.write_bytes(content)
    else:
        (path / "biopsy result").mkdir(parents=True)
        (path / "biopsy result" / "O'Brien.png").write_bytes(b"Anna Bell")
    settings_ = site.model_dump(mode="json") | {"data": {"source": source, "images": str(path), "npz": str(path)}}
    handler = open_worker(experiment, settings_, fl_ctx.folder)
    assert checked(raised(lambda: handler._data), fl_ctx).to_json()["code"] in {"data", "no_images", "internal"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"Anna Bell": 1}, reasons.SiteSettings()),
        ({"data": {"images": 8675309}}, reasons.SiteSettings(field="data.images")),
        ({"data": {"Anna Bell": "O'Brien"}}, reasons.SiteSettings(field="data")),
        ({"data": {"columns": {"Anna Bell": "O'Brien"}}}, reasons.SiteSettings(field="data.columns")),
        ({"data": {"classes": {"Anna Bell": "O'Brien"}}}, reasons.SiteSettings(field="data.classes")),
        ({"device": "Anna Bell"}, reasons.SiteSettings(field="device")),
        ({"limits": {"methods": [{"Anna Bell": 8675309}]}}, reasons.SiteSettings(field="limits.methods")),
    ],
)
def test_faults_of_the_settings(fields, expected, tiny, site, fl_ctx):
    content = {**site.model_dump(mode="json"), **fields}
    assert checked(raised(lambda: open_worker(tiny, content, fl_ctx.folder)), fl_ctx) == expected
    (fl_ctx.folder / "local" / "site.json").write_text(json.dumps(content))
    assert checked(raised(lambda: read_site(fl_ctx)), fl_ctx) == expected


def test_faults_of_the_settings_file(fl_ctx):
    (fl_ctx.folder / "local" / "site.json").write_text('{"Anna Bell": 1, "Anna Bell": 2}')
    assert checked(raised(lambda: read_site(fl_ctx)), fl_ctx) == reasons.SiteSettings()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, reasons.Backbone(field="backbone")), (b"Anna Bell", reasons.OtherBackbone())],
)
def test_faults_of_the_weights(content, expected, tiny, fl_ctx):
    path = fl_ctx.folder / "Anna Bell 8675309.safetensors"
    if content:
        path.write_bytes(content)
    handler = open_worker(tiny, Site(backbone=str(path)).model_dump(mode="json"), fl_ctx.folder)
    assert checked(raised(lambda: handler._trainer), fl_ctx) == expected


def test_weights_that_do_not_fit(tiny, fl_ctx):
    from pt_peft.files import sha256_of

    path = fl_ctx.folder / "Anna Bell 8675309.safetensors"
    path.write_bytes(b"biopsy result")
    other = changed(tiny, backbone={"sha256": sha256_of(path)})
    handler = open_worker(other, Site(backbone=str(path)).model_dump(mode="json"), fl_ctx.folder)
    assert checked(raised(lambda: handler._trainer), fl_ctx) == reasons.Backbone()


def test_a_damaged_account_of_the_privacy(tiny, site, fl_ctx):
    private = changed(tiny, privacy={"sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}})
    (fl_ctx.folder / BUDGET).write_text('{"spent": [{"job": 8675309, "Anna Bell": 1}]}')
    handler = open_worker(private, site.model_dump(mode="json"), fl_ctx.folder)
    assert checked(raised(lambda: handler._spend(0)), fl_ctx).to_json()["code"] == "failed"


def test_a_damaged_key(fl_ctx):
    pytest.importorskip("tenseal")
    from pt_peft.encryption.contexts import site_context

    path = fl_ctx.folder / "Anna Bell"
    checked(raised(lambda: read_file(path)), fl_ctx)
    path.write_bytes(b"biopsy result")
    checked(raised(lambda: site_context(read_file(path), str(path))), fl_ctx)


def test_no_model_of_its_own(tiny, site, fl_ctx):
    handler = open_worker(tiny, site.model_dump(mode="json"), fl_ctx.folder)
    assert checked(raised(lambda: handler.local_state({}, {})), fl_ctx).to_json()["code"] == "failed"


# --- the server --------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.text().map(lambda code: json.dumps({"code": code})))
)
def test_a_server_takes_what_is_on_its_list_and_nothing_else(said):
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, said)
    reason = reason_of(reply)
    assert isinstance(reason, CLASSES)
    sentence = LeftOut.of(reason.cleared(known_names(None, None) | RETURN_CODES)).sentence
    assert re.fullmatch(r"[ -~]{1,300}", sentence), "one printable line"


def test_a_server_shows_no_word_that_is_not_of_the_job():
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, json.dumps({"code": "data", "field": "\x1b[31m visit http://evil.example"}))
    assert reason_of(reply).cleared(known_names(None, None)) == reasons.Data()
    reply.set_header(REASON, json.dumps({"code": "no_answer", "seconds": 3}))
    assert reason_of(reply) == reasons.Failed(), "that is for the server to say"
    reply.set_header(REASON, json.dumps({"code": "worker_timeout", "seconds": 1e308}))
    assert reason_of(reply) == reasons.Failed()
    reply.set_header(REASON, json.dumps({"code": "stopped", "more": "x" * 100_000}))
    assert reason_of(reply) == reasons.Failed()


@pytest.mark.parametrize(
    ("metrics", "tensors", "says"),
    [
        ({"seconds": 1.0, "CALL +1-555-0100 " + "A" * 20_000: 1}, {}, "report"),
        ({"seconds": "CALL +1-555-0100"}, {}, "report (field 'seconds')"),
        ({"seconds": 1.0}, {"CALL +1-555-0100": np.zeros(1)}, "tensors"),
        ({"seconds": 1.0}, {"head.bias": np.zeros(1, [("CALL", "f4")])}, "tensors (tensor 'head.bias')"),
    ],
)
def test_a_server_shows_no_word_of_a_result(metrics, tensors, says, tiny):
    def accept(one: FLModel) -> EvaluationReport:
        read = parse(EvaluationReport, {"code": own_code().model_dump(), **one.metrics}, "report")
        check_tensors(one.params, {"head.bias": TensorSpec((1,), "float32")})
        return read

    results = RoundResults(accept, lambda reason: reason.cleared(known_names(tiny, None) | {"head.bias"}))
    results.arrived("site-1")
    assert not results.add("site-1", FLModel(params=tensors or {"a": np.zeros(1)}, metrics=metrics))
    assert str(results.left_out["site-1"]) == f"the result is not what the site had to send: {says}"
    assert "CALL" not in json.dumps(results.left_out["site-1"].to_json())


def test_a_good_result_leaves_rounded_and_is_taken_as_it_is(tiny, site, fl_ctx):
    """From a worker's reply, past the filter, to the server."""
    handler = open_worker(tiny, site.model_dump(mode="json"), fl_ctx.folder)
    _, initial = handler.initial_state({}, {})
    reply, payload = handler.train({"round": 0, "since": 0}, dict(initial))
    passing = egress()
    passing._exchange = handler._trainer.exchange
    left = from_shareable(passing.process(result(payload, dict(reply)), fl_ctx))
    report: Any = left.get_meta_prop(MetaKey.INITIAL_METRICS)
    assert report["code"] == own_code().model_dump()
    assert report["train_loss"] == rounded_loss(reply["train_loss"]) != reply["train_loss"]  # pyright: ignore[reportArgumentType]
    assert report["val"]["confusion"] == reply["val"]["confusion"]  # pyright: ignore[reportIndexIssue]
    assert parse(TrainingReport, report, "report").checked(tiny).model_dump(mode="json") == report
    assert left.data.keys() == payload.keys()
