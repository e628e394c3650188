"""FLARE's cross-site evaluation: what counts of it, and what stays at a site."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ProcessType, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from pt_peft import reasons
from pt_peft.environment import own_code
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, TensorSpec, payload_sha256
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.federation.known_names import known_names
from pt_peft.federation.reports import EvaluationReport
from pt_peft.schema import parse
from pt_peft.training.metrics import confusion_metrics
from pt_peft.worker.handle import Patience
from pt_peft_flare.cross_site import CrossSite
from pt_peft_flare.filters import EgressFilter
from pt_peft_flare.learner import SiteJob
from pt_peft_flare.messages import failure, reason_of
from pt_peft_flare.run_record import RunRecord
from pt_peft_flare.wire import Unreadable, WireTensors

FINAL, BEST = "SRV_adapter.safetensors", "SRV_best_adapter.safetensors"
SITES = [f"site-{number}" for number in range(1, 7)]
TENSORS = WireTensors({"head.bias": np.arange(4, dtype=np.float32)})
CONFUSION = [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
SPLIT = {
    "count": 10, "loss": 0.5, "auroc": 1.0, "class_auroc": [1.0] * 4, "ece": 0.1, "confusion": CONFUSION,
    **confusion_metrics(np.array(CONFUSION)),
}  # fmt: skip
REPORT = {"val": SPLIT, "test": SPLIT, "seconds": 1.0, "code": own_code().model_dump()}


class Workflow:
    """The events of FLARE's workflow, as `CrossSiteModelEval` fires them."""

    def __init__(self, experiment: Any):
        def accept(result: Any) -> EvaluationReport:
            return parse(EvaluationReport, result.metrics, "report").checked(experiment)

        self.found = CrossSite(accept, lambda reason: reason.cleared(known_names(experiment, None)))
        self._fire(AppEventType.CROSS_VAL_INIT, {})

    def _fire(self, event_type: str, props: dict[str, object]) -> None:
        fl_ctx = FLContext()
        for key, value in props.items():
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        self.found.hear(event_type, fl_ctx)

    def submit(self, site: str, result: Shareable) -> None:
        props = {AppConstants.RECEIVED_MODEL: result, AppConstants.RECEIVED_MODEL_OWNER: site}
        self._fire(AppEventType.RECEIVE_BEST_MODEL, props)

    def send(self, model: str, site: str) -> None:
        props = {
            AppConstants.DATA_CLIENT: SimpleNamespace(name=site),
            AppConstants.MODEL_OWNER: model,
            AppConstants.PARTICIPATING_CLIENTS: SITES,
        }
        self._fire(AppEventType.SEND_MODEL_FOR_VALIDATION, props)

    def answer(self, model: str, site: str, result: Shareable) -> None:
        props = {
            AppConstants.MODEL_OWNER: model,
            AppConstants.DATA_CLIENT: site,
            AppConstants.VALIDATION_RESULT: result,
        }
        self._fire(AppEventType.VALIDATION_RESULT_RECEIVED, props)


def own(tensors: dict[str, Any]) -> Shareable:
    return DXO(DataKind.WEIGHTS, data=tensors).to_shareable()


def evaluated(**fields: Any) -> Shareable:
    return DXO(DataKind.METRICS, data={**REPORT, **fields}).to_shareable()


def test_each_hole_has_its_reason(tiny, tmp_path):
    workflow = Workflow(tiny)
    workflow.submit("site-1", own(TENSORS))
    workflow.submit("site-2", failure(reasons.OutsideLimits(field="own_model_stays")))
    workflow.submit("site-4", make_reply(ReturnCode.OK))
    unreadable = own(Unreadable("too large"))
    workflow.submit("site-6", unreadable)
    assert unreadable.get_return_code() == ReturnCode.EXECUTION_RESULT_ERROR, "FLARE then does not send it to others"
    for model in (FINAL, BEST, "site-1"):
        for site in SITES[:-1]:
            workflow.send(model, site)
    workflow.answer(FINAL, "site-1", evaluated())
    workflow.answer(FINAL, "site-2", failure(reasons.OutOfMemory()))
    workflow.answer(FINAL, "site-3", evaluated(val={**SPLIT, "accuracy": 1.0}))
    workflow.answer(FINAL, "site-4", make_reply(ReturnCode.OK))
    workflow.answer("another's", "site-5", evaluated())
    workflow.answer("site-1", "site-2", evaluated(test=None))
    workflow.found.close({"site-6": reasons.KilledTooOften()})

    record = RunRecord(tmp_path, tiny, "job", SITES, {}, 0)
    entry = record.add_cross_site(workflow.found)
    assert [*entry["models"]] == [FINAL, BEST, "site-1"]
    final = entry["models"][FINAL]
    assert {site: one["code"] for site, one in final["left_out"].items()} == {
        "site-2": "out_of_memory",
        "site-3": "bad_result",
        "site-4": "unreadable",
        "site-5": "no_answer",
        "site-6": "killed_too_often",
    }
    assert final["left_out"]["site-3"]["field"] == "accuracy"
    assert final["sites"].keys() == {"site-1"}
    assert final["val"]["pooled"]["confusion"] == CONFUSION
    assert final["test"]["mean"]["balanced_accuracy"] == pytest.approx(0.9375)
    assert (final["sha256"], entry["models"]["site-1"]["sha256"]) == (None, payload_sha256(TENSORS))
    assert entry["models"][BEST]["val"] is None
    assert entry["models"][BEST]["left_out"].keys() == {*SITES}
    assert (entry["models"]["site-1"]["test"], entry["models"]["site-1"]["val"]["pooled"]["count"]) == (None, 10)
    assert {site: one["code"] for site, one in entry["left_out"].items()} == {
        "site-2": "outside_limits",
        "site-3": "no_answer",
        "site-4": "bad_result",
        "site-5": "no_answer",
        "site-6": "bad_result",
    }
    assert entry["left_out"]["site-2"]["field"] == "own_model_stays"
    record.close("finished")
    assert json.loads((tmp_path / "metrics.json").read_text())["cross_site"] == entry


def test_a_second_answer_mends_a_hole_and_changes_no_result(tiny):
    """A site whose process has died is asked again."""
    workflow = Workflow(tiny)
    workflow.send(FINAL, "site-1")
    workflow.answer(FINAL, "site-1", failure(reasons.WorkerDied()))
    workflow.answer(FINAL, "site-1", evaluated())
    workflow.answer(FINAL, "site-1", failure(reasons.WorkerDied()))
    workflow.found.close({})
    results = workflow.found.models[FINAL].results
    assert results.reports.keys() == {"site-1"}
    assert results.left_out.keys() == {*SITES[1:]}


def is_dropped(result: Shareable) -> bool:
    """Whether FLARE's workflow, which reads a result after us, keeps nothing of it and goes on."""
    try:
        from_shareable(result)
    except ValueError:
        return result.get_return_code() == ReturnCode.OK
    return False


@pytest.mark.parametrize("name", ["another's", "../../../adapter.safetensors", ["no name"], None])
def test_a_name_that_is_no_models_ends_no_task(name, tiny):
    """FLARE would write a file of the name, and at an error end the task for all sites."""
    workflow = Workflow(tiny)
    workflow.send(FINAL, "site-1")
    for result in (evaluated(), failure(reasons.OutOfMemory())):
        workflow.answer(name, "site-1", result)
        assert is_dropped(result)
    assert [*workflow.found.models] == [FINAL]
    assert not workflow.found.models[FINAL].results.reports


def test_flare_keeps_what_counts_alone(tiny):
    workflow = Workflow(tiny)
    workflow.send(FINAL, "site-1")
    results = evaluated(val={**SPLIT, "accuracy": 1.0}), evaluated(), evaluated()
    for result in results:
        workflow.answer(FINAL, "site-1", result)
    assert [is_dropped(result) for result in results] == [True, False, True]
    failed = failure(reasons.OutOfMemory())
    workflow.answer(FINAL, "site-2", failed)
    assert failed.get_return_code() == ReturnCode.EXECUTION_EXCEPTION


def test_a_site_has_one_model_of_its_own(tiny):
    """FLARE would have all sites evaluate as many as one site sends, and of a collection each part."""
    workflow = Workflow(tiny)
    several = DXO("COLLECTION", data=TENSORS).to_shareable()
    workflow.submit("site-1", several)
    assert several.get_return_code() == ReturnCode.EXECUTION_RESULT_ERROR
    assert workflow.found.left_out.keys() == {"site-1"}
    first = own(TENSORS)
    workflow.submit("site-1", first)
    assert first.get_return_code() == ReturnCode.OK
    assert not workflow.found.left_out
    for again in (own(TENSORS), failure(reasons.WorkerDied())):
        workflow.submit("site-1", again)
        assert again.get_return_code() == ReturnCode.EXECUTION_RESULT_ERROR
    assert not workflow.found.left_out


def test_where_no_site_is_asked_for_its_own_model_none_is_missing(tiny):
    """As with FLARE's `add_final_global_evaluation`."""
    workflow = Workflow(tiny)
    workflow.send(FINAL, "site-1")
    workflow.found.close({})
    assert not workflow.found.left_out


@pytest.mark.parametrize("stays", [True, False])
def test_a_sites_own_model_leaves_only_where_its_limits_say_so(stays, tiny, tmp_path):
    """The last gate asks for itself, whatever the learner answers, and the ledger has both."""
    for name in ("run", "config", "local"):
        (tmp_path / name).mkdir()
    limits = Limits.open().model_copy(update={"own_model_stays": stays})
    (tmp_path / "local" / "site.json").write_text(Site(limits=limits).model_dump_json())
    (tmp_path / "config" / "experiment.json").write_text(tiny.to_json())
    workspace = SimpleNamespace(
        get_run_dir=lambda job: str(tmp_path / "run"),
        get_app_config_dir=lambda job: str(tmp_path / "config"),
        get_site_config_dir=lambda: str(tmp_path / "local"),
    )
    fl_ctx: Any = SimpleNamespace(
        get_prop=lambda key, default=None: "submit_model" if key == FLContextKey.TASK_NAME else default,
        get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace),
        get_job_id=lambda: "job",
        get_identity_name=lambda: "site-1",
        get_peer_context=lambda: None,
        get_process_type=lambda: ProcessType.CLIENT_JOB,
    )
    egress: Any = EgressFilter()
    egress.log_error = lambda *arguments, **keywords: None
    egress._exchange = Exchange({"head.bias": TensorSpec((4,), "float32")}, frozenset({"head.bias"}))
    result = DXO(DataKind.WEIGHTS, data=TENSORS, meta={AppConstants.CURRENT_ROUND: 1}).to_shareable()
    left = egress.process(result, fl_ctx)
    (line,) = map(json.loads, (tmp_path / "run" / "egress.jsonl").read_text().splitlines())
    assert (line["task"], line["round"]) == ("submit_model", None)
    if stays:
        assert "DXO" not in left
        assert reason_of(left).to_json() == line["reason"]
        assert (line["reason"]["code"], line["reason"]["field"]) == ("outside_limits", "own_model_stays")
        assert "tensors" not in line
    else:
        assert payload_sha256(left["DXO"]["data"]) == payload_sha256(TENSORS)
        assert line["sha256"] == payload_sha256(TENSORS)
        assert line["tensors"].keys() == {"head.bias"}


@pytest.mark.parametrize("task", ["train", "statistics"])
def test_another_workflow_has_nothing_trained(task, tiny, tmp_path):
    """FLARE's takes the name of its task from the lead; what a site trains names its round."""
    worker: Any = SimpleNamespace(call=None)
    job = SiteJob(tiny, "site-1", tmp_path, worker, None, Exchange({}, frozenset()), Limits.open(), cast(Any, None))
    with pytest.raises(TensorError, match=f"'{task}' names no round"):
        job.do(task, own(TENSORS), Patience())
