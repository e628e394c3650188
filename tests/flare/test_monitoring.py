"""FLARE's components for StatsD and Prometheus, as docs/deploy/prometheus.md has them, with a stand-in of `datadog`."""

import importlib
import json
import re
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReservedTopic
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.data_event.data_bus import DataBus
from nvflare.fuel.utils.config_service import ConfigService

from helpers import ROOT
from pt_peft.experiment.admission import component_refusals
from pt_peft.presets import demo
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.kits import SERVER_CLASSES
from pt_peft_flare.parent.allowed_components import AllowedComponents

PAGE = ROOT / "docs" / "deploy" / "prometheus.md"
REPORTER = "nvflare.fuel_opt.statsd.statsd_reporter"


def documented(collector: str) -> list[dict[str, Any]]:
    """The components of the page's block that has this collector."""
    blocks = re.findall("```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [one for one in blocks if f".{collector}" in one]
    return json.loads(block)


def add_to(path, components: list[dict[str, Any]]) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "components": [*config["components"], *components]}))


@pytest.fixture
def app(tmp_path):
    write_job(demo("lora")[0], tmp_path / "job", installed=True)
    return tmp_path / "job" / "app"


@pytest.fixture
def statsd(monkeypatch):
    """What FLARE's reporter sends, by name the values."""
    sent: dict[str, list[float]] = {}

    def take(name: str, value: float, tags: list[str]) -> None:
        sent.setdefault(name, []).append(value)
        assert tags[0] == "site:server"

    module = ModuleType("datadog")
    module.initialize = lambda statsd_host, statsd_port: None  # pyright: ignore[reportAttributeAccessIssue]
    module.statsd = SimpleNamespace(increment=take, gauge=take)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "datadog", module)
    monkeypatch.delitem(sys.modules, REPORTER, raising=False)
    yield sent
    DataBus().unsubscribe(ReservedTopic.APP_METRICS)
    sys.modules.pop(REPORTER, None)


def built(component: dict[str, Any]) -> Any:
    module, _, name = component["path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**component["args"])


def test_a_job_may_have_them_where_the_servers_list_has_them(app, monkeypatch):
    added = documented("JobMetricsCollector")
    add_to(app / "config" / "config_fed_server.json", added)
    resources = {"class_allow_list": [*SERVER_CLASSES], "class_list_enforcement_mode": "enforce"}
    monkeypatch.setattr(ConfigService, "get_section", lambda section: resources)
    validator = AllowedComponents("config_fed_server.json")
    assert f"class {added[0]['path']!r} is not in class_allow_list of resources.json" in validator.validate(str(app))[0]
    resources["class_allow_list"] += [one["path"] for one in added]
    assert AllowedComponents("config_fed_server.json").validate(str(app)) == ("", {})


def test_a_site_takes_none_from_a_job(app):
    added = documented("JobMetricsCollector")
    add_to(app / "config" / "config_fed_client.json", added)
    assert [str(one).partition("class ")[2] for one in component_refusals(app, None)] == [
        f"{one['path']!r} is not in class_allow_list of the site." for one in added
    ]


def test_rounds_and_aggregations_are_counted_and_timed(statsd):
    collector, _ = (built(one) for one in documented("JobMetricsCollector"))
    fl_ctx: Any = SimpleNamespace(get_job_id=lambda: "job")
    for event in (AppEventType.ROUND_STARTED, AppEventType.AFTER_AGGREGATION, AppEventType.ROUND_DONE):
        collector.handle_event(event, fl_ctx)
    until = time.monotonic() + 10
    while "_round_time_taken" not in statsd and time.monotonic() < until:  # FLARE sends from a thread of its own
        time.sleep(0.01)
    assert statsd["_after_aggregation_count"] == [1]
    assert 0 <= statsd["_round_time_taken"][0] < 10


def test_the_components_of_server_and_sites_are_there(statsd):
    collector, reporter = documented("SysMetricsCollector")
    assert built(collector).tags == {"site": "server"}
    assert built(reporter).site == ""
