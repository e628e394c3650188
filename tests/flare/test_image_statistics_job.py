"""A job that counts the sites' images, by FLARE's statistics workflow."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable

from helpers import JOBS, changed, simulate
from pt_peft import reasons
from pt_peft.errors import UserError
from pt_peft.experiment.admission import (
    EGRESS,
    IMAGE_STATISTICS,
    SITE_CLASSES,
    asks_image_statistics,
    components,
    filter_refusals,
    image_statistics_refusals,
)
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.federation.image_statistics import EDGES, ImageReport
from pt_peft.federation.known_names import known_names
from pt_peft.presets import demo
from pt_peft.schema import parse
from pt_peft_flare import image_statistics
from pt_peft_flare.__main__ import main
from pt_peft_flare.commands.status import table
from pt_peft_flare.filters import _allowed_image_statistics
from pt_peft_flare.image_statistics import ImageStatistics, in_flares_form
from pt_peft_flare.job_folder import (
    CLIENT_CONFIG,
    STATISTICS_CLIENT_CONFIG,
    STATISTICS_SERVER_CONFIG,
    write_job,
    write_workspace,
)
from pt_peft_flare.kits import SERVER_CLASSES
from pt_peft_flare.messages import failure
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.statistics_page import to_html


def split(images, classes):
    return {"images": images, "classes": classes} | {n: [images] + [0] * (len(e) - 2) for n, e in EDGES.items()}


def fields(least=5, **splits):
    return {"least": least, "train": None, "val": None, "test": None} | splits


GOOD = fields(train=split(80, [40, 0, 30, 10]))


def test_a_simulation_counts_and_names_who_is_left_out(tiny, tiny_weights, shared_host, tmp_path, capsys):
    sizes = {"train": 60, "val": 16, "test": 9}
    write_job(changed(tiny, data={"images_per_site": sizes}), tmp_path / "count", statistics=True)
    own: Any = {"site-2": {"limits": {"min_images_per_class": 1}}, "site-3": {"limits": {"image_statistics": False}}}
    write_workspace(Site(backbone=str(tiny_weights), sites=own), tmp_path / "workspace")
    run = simulate(tmp_path / "count", tmp_path / "workspace", "-n", "3", "-t", "3", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    found = json.loads((run.server / "image_statistics.json").read_text())
    assert found["left_out"]["site-3"]["code"] == "outside_limits"
    assert found["left_out"]["site-3"]["field"] == "image_statistics"
    assert sorted(found["sites"]) == ["site-1", "site-2"]
    assert [found["sites"]["site-1"][name] and found["sites"]["site-1"][name]["images"] for name in sizes] == [
        60,
        16,
        None,
    ]
    # FLARE's own file: by feature, statistic, site and split, with the sum of all
    flares = json.loads((run.server / "fed_stats.json").read_text())
    assert flares["width"]["count"] == {
        "site-1": {"train": 60, "val": 16}, "site-2": {"train": 60, "val": 16}, "Global": {"train": 120, "val": 32},
    }  # fmt: skip
    classes = flares["classes"]["histogram"]
    sums = [
        sum(one) for one in zip(*(found["sites"][site]["train"]["classes"] for site in found["sites"]), strict=True)
    ]
    assert [one[2] for one in classes["Global"]["train"]] == sums
    page = (run.server / "image_statistics.html").read_text()
    assert "<b>site-3</b>: the site&#x27;s limits refuse this (field &#x27;image_statistics&#x27;)" in page
    assert "http" not in page
    # the ledgers have all that left
    (line,) = run.ledger("site-1")
    assert (line["task"], line["tensor_bytes"], line["report"]) == (IMAGE_STATISTICS, 0, found["sites"]["site-1"])
    assert run.asked("site-1")["image_statistics"]
    record = run.server / "image_statistics.json"
    verify = ["ledger", str(run.workspace / "site-1" / "simulate_job"), "--name", "site-1", "--verify"]
    assert main([*verify, str(record)]) == 0
    assert "the server counts 1 result(s) of this site; 1 of them are in this ledger" in capsys.readouterr().out
    found["sites"]["site-1"]["train"]["images"] = 61
    record.write_text(json.dumps(found))
    assert main([*verify, str(record)]) == 1
    assert "image counts: the server has another report (train)" in capsys.readouterr().err
    (refused,) = run.ledger("site-3")
    assert refused["reason"]["code"] == "outside_limits"


def test_the_job_is_what_kits_take(tiny, tmp_path):
    write_job(tiny, tmp_path / "count", statistics=True)
    config = tmp_path / "count" / "app" / "config"
    for name, allowed in (("config_fed_server.json", SERVER_CLASSES), ("config_fed_client.json", SITE_CLASSES)):
        named = [one["path"] for _, one in components(json.loads((config / name).read_text()))]
        assert named
        assert set(named) <= set(allowed)
    assert asks_image_statistics(config)
    assert not [*filter_refusals(tiny, config)]


def test_the_committed_job_counts_the_demos_images(tmp_path):
    write_job(demo("lora_vpt")[0], tmp_path / "statistics", statistics=True)
    for path in sorted(one for one in (tmp_path / "statistics").rglob("*") if one.is_file()):
        assert (JOBS / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


def test_the_egress_filter_must_be_on_the_counts_too(tiny, tmp_path):
    for tasks in ([IMAGE_STATISTICS], ["fed_*"], ["*"]):
        executors = [{**CLIENT_CONFIG["executors"][0], "tasks": tasks}]
        (tmp_path / "config_fed_client.json").write_text(json.dumps({**CLIENT_CONFIG, "executors": executors}))
        (refusal,) = filter_refusals(tiny, tmp_path)
        assert f"must end with {EGRESS} for task '{IMAGE_STATISTICS}'" in str(refusal)
        assert refusal.reason == reasons.Filters(task=IMAGE_STATISTICS)
    (tmp_path / "config_fed_client.json").write_text(json.dumps(CLIENT_CONFIG))
    assert not asks_image_statistics(tmp_path)  # so that a learner counts nothing
    (tmp_path / "config_fed_client.json").write_text('{"executors": 3}')
    assert not asks_image_statistics(tmp_path)


def test_what_promises_more_is_not_counted(tiny, tmp_path):
    private = changed(tiny, privacy={"sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}})
    (refusal,) = image_statistics_refusals(private)
    assert "field 'privacy' is set, but counts of images travel without noise" in str(refusal)
    assert refusal.reason == reasons.ExperimentInvalid(field="privacy")
    with pytest.raises(UserError, match="leave it out of a job for image statistics"):
        write_job(private, tmp_path / "count", statistics=True)
    (refusal,) = image_statistics_refusals(tiny, Limits(image_statistics=False))
    assert refusal.reason == reasons.OutsideLimits(field="image_statistics", asked=refusal.reason.asked)  # pyright: ignore[reportAttributeAccessIssue]
    assert not [*image_statistics_refusals(tiny, Limits())]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (fields(train=split(80, [40, 3, 27, 10])), "classes has counts of fewer than 5"),
        (fields(1, train=split(80, [40, 3, 27, 10])), "least is 1; 5 would be right"),
        (fields(train=split(49, [49, 0, 0, 0])), "train has 49 images; 50 at least would be right"),
        (GOOD | {"names": ["0.png"]}, "field 'names' is unknown"),
    ],
)
def test_the_filter_holds_back_what_is_too_small(data, says, tiny):
    allowed, line = _allowed_image_statistics(tiny, Site(), DXO(DataKind.METRICS, data=GOOD))
    assert (allowed.data, line["report"]) == (GOOD, GOOD)
    with pytest.raises(UserError, match=says):
        _allowed_image_statistics(tiny, Site(), DXO(DataKind.METRICS, data=data))
    with pytest.raises(UserError, match="field 'image_statistics'"):
        _allowed_image_statistics(tiny, Site(limits=Limits(image_statistics=False)), DXO(DataKind.METRICS, data=GOOD))


def test_what_a_site_says_costs_no_other_site_its_report(tiny):
    controller = ImageStatistics()
    controller._results = RoundResults(
        lambda result: parse(ImageReport, result.metrics, "report").checked(tiny),
        lambda reason: reason.cleared(known_names(tiny, None)),
    )
    wrong = fields(train=split(80, [40, 3, 27, 10]))
    said: dict[str, Any] = {
        "good": DXO(DataKind.METRICS, data=GOOD).to_shareable(),
        "small": DXO(DataKind.METRICS, data=wrong).to_shareable(),
        "other": DXO(DataKind.METRICS, data={key: GOOD[key] for key in GOOD if key != "least"}).to_shareable(),
        "empty": Shareable(),
        "refuses": failure(reasons.OutsideLimits(field="image_statistics")),
        "tells": failure(reasons.OutsideLimits(field="patient_7")),
    }
    for name, result in said.items():
        task: Any = SimpleNamespace(client=SimpleNamespace(name=name), result=result)
        controller.results_cb(task, None)  # pyright: ignore[reportArgumentType]
    assert controller._results.reports.keys() == {"good"}
    assert {name: one.reason for name, one in controller._results.left_out.items()} == {
        "small": reasons.BadResult(what="report", field="classes"),
        "other": reasons.BadResult(what="report", field="least"),
        "empty": reasons.Unreadable(),
        "refuses": reasons.OutsideLimits(field="image_statistics"),
        "tells": reasons.OutsideLimits(),
    }
    controller._name, controller._asked = "mine", ["good", "other", "late"]
    told: Any = controller._status("", {}, None)  # pyright: ignore[reportArgumentType]
    assert [told["sites"][site]["now"] for site in ("good", "late")] == ["answered", "counting"]
    assert "field 'least'" in told["sites"]["other"]["now"]
    running: Any = {"status": "RUNNING", **told}
    shown = table({"sites": {}, "shut_out": [], "jobs": {"a": running}})
    assert shown.startswith("a  RUNNING  mine: 0 of 0 rounds, 0 of 1 stages of statistics\n")


def test_it_says_how_long_it_has_waited(tiny, monkeypatch):
    """FLARE ends a task that only dead sites have not answered."""
    controller: Any = ImageStatistics()
    monkeypatch.setattr(image_statistics, "read_experiment", lambda fl_ctx: tiny)
    for name in ("statistics_task_flow", "_finish"):
        monkeypatch.setattr(controller, name, lambda *arguments: None)
    engine = SimpleNamespace(get_clients=lambda: [SimpleNamespace(name="site-1")])
    controller.control_flow(SimpleNamespace(triggered=False), SimpleNamespace(get_engine=lambda: engine))
    assert controller._results.left_out["site-1"].reason == reasons.NoAnswer(seconds=0)


def test_it_waits_for_sites_that_can_still_answer_alone(monkeypatch):
    controller: Any = ImageStatistics()
    controller._asked = ["site-1", "site-2", "site-3"]
    task, waits = SimpleNamespace(completion_status=None), []

    def step(seconds: float) -> None:
        waits.append(seconds)
        assert task.completion_status is None
        match len(waits):
            case 1:
                controller._results.refuse("site-1", "is too long")
            case 2:
                controller._participants.out["site-2"] = reasons.ShutOut()
            case 3:
                controller._results.arrived("site-3")  # and is being read
            case 4:
                controller._results.add("site-3", None)

    monkeypatch.setattr(image_statistics, "time", SimpleNamespace(sleep=step))
    monkeypatch.setattr(controller, "broadcast", lambda *arguments, **named: None)
    monkeypatch.setattr(
        controller, "cancel_task", lambda task, **named: setattr(task, "completion_status", "cancelled")
    )
    controller.broadcast_and_wait(task, None)
    assert len(waits) == 4


def test_names_in_the_page_are_text(tiny):
    experiment = changed(tiny, data={"classes": ["a&b", "b", "c", "d"]})
    report = ImageReport.model_validate(fields(train=split(80, [40, 0, 30, 10])))
    page = to_html(experiment, {"site-1": report}, {"<site>": "why & not"})
    assert "<th>a&amp;b</th>" in page
    assert "<b>&lt;site&gt;</b>: why &amp; not" in page
    assert "<td>0 to 4<" in page
    assert "<td>26 to 30<" in page
    assert "0 to 64 px: 72 to 80 of 80" in page
    assert "<table>" not in to_html(experiment, {}, {"site-1": "fails"})


def test_flares_form(tiny):
    report = ImageReport.model_validate(GOOD)
    found = in_flares_form(tiny, {"site-1": report})
    assert found["count"]["site-1"]["train"]["classes"] == 80
    assert [tuple(one) for one in found["histogram"]["site-1"]["train"]["classes"].bins] == [
        (0.0, 1.0, 40), (1.0, 2.0, 0), (2.0, 3.0, 30), (3.0, 4.0, 10),
    ]  # fmt: skip


def test_show_job_says_so(tmp_path, capsys):
    write_job(changed(demo("bitfit")[0], data={"images_per_site": {"train": 24}}), tmp_path / "a", statistics=True)
    assert main(["show-job", str(tmp_path / "a")]) == 0
    assert (
        "counts      the images of this site by split, class, size, brightness and contrast" in capsys.readouterr().out
    )


def test_the_configs_differ_from_trainings_in_what_is_asked():
    assert {*STATISTICS_SERVER_CONFIG} == {"format_version", "server", "np_download_chunk_size", "workflows",
                                           "components", "task_data_filters", "task_result_filters"}  # fmt: skip
    assert STATISTICS_CLIENT_CONFIG["executors"][0]["tasks"] == [IMAGE_STATISTICS]
