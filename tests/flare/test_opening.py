"""A job that comes to a site is in its ledger and its log before anything of it is checked."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from helpers import changed, simulated
from pt_peft import reasons
from pt_peft_flare import learner as learner_module
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.learner import PeftLearner
from pt_peft_flare.messages import reason_of

META = {
    "deploy_map": {"app": ["@ALL"]},
    "job_clients": [{"name": "hospital-1"}, {"name": "hospital-2"}],
    "submitter_name": "lead@consortium.example",
    "submitter_org": "consortium",
    "submitter_role": "lead",
}


class Site:
    """The learner of a site, for which a job starts and a task comes; no worker is started."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.log: list[str] = []
        self.workers = 0
        self.meta: dict[str, Any] = META
        self.in_simulator = False
        (folder / "local").mkdir()
        for name in ("start_host", "TaskNotices"):
            monkeypatch.setattr(learner_module, name, lambda fl_ctx: None)
        monkeypatch.setattr(learner_module, "RespawningWorker", self._worker)
        for level in ("info", "warning", "error"):
            monkeypatch.setattr(PeftLearner, f"log_{level}", lambda _, fl_ctx, text, **options: self.log.append(text))

    def _worker(self, *arguments):
        self.workers += 1
        return SimpleNamespace(call=lambda name, patience: ({"train": 40, "val": 16, "test": 16}, {}))

    @property
    def fl_ctx(self) -> Any:
        workspace = SimpleNamespace(
            get_site_config_dir=lambda: str(self.folder / "local"),
            get_startup_kit_dir=lambda: str(self.folder / "startup"),
            get_app_config_dir=lambda job: str(self.folder / "job" / "app" / "config"),
            get_run_dir=lambda job: str(self.folder / "job"),
        )
        engine = simulated(workspace) if self.in_simulator else SimpleNamespace(get_workspace=lambda: workspace)
        return SimpleNamespace(
            get_engine=lambda: engine,
            get_prop=lambda key, default=None: self.meta if key == FLContextKey.JOB_META else default,
            get_job_id=lambda: "1234",
            get_identity_name=lambda: "hospital-1",
            get_process_type=lambda: ProcessType.CLIENT_JOB,
        )

    def edit(self, file, **fields):
        path = self.folder / "job" / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def starts(self) -> PeftLearner:
        learner = PeftLearner()
        learner.handle_event(EventType.START_RUN, self.fl_ctx)
        return learner

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "job" / "egress.jsonl").read_text().splitlines()]


@pytest.fixture
def site(tiny, tmp_path, monkeypatch) -> Site:
    write_job(changed(tiny, federation={"min_sites": 2}), tmp_path / "job", installed=True)
    return Site(tmp_path, monkeypatch)


def test_an_honest_job(site):
    site.starts()
    (line,) = site.lines()
    assert (line["task"], line["asks"]["refused"], line["asks"]["exchange"]) == ("open", [], None)
    assert line["asks"]["submitter"]["name"] == "lead@consortium.example"
    (said,) = site.log
    assert said == (
        "this job is from lead@consortium.example (lead of consortium), for all sites, now hospital-1, hospital-2"
    )
    assert site.workers == 0


def test_a_job_for_one_site_that_ends_before_its_first_task(site):
    site.meta = {**META, "deploy_map": {"app": ["server", "hospital-1"]}, "job_clients": [{"name": "hospital-1"}]}
    site.starts()
    (line,) = site.lines()
    assert line["asks"]["deployment"] == {"everyone": False, "sites": ["hospital-1"], "other_apps": {}}
    assert line["asks"]["limits"] == "refused"
    assert "it asks for a job that is deployed to 1 site(s)" in line["asks"]["refused"][0]
    assert "for hospital-1; this site refuses it: the site refuses the job by field 'min_sites'" in site.log[0]


def test_a_clone_of_what_is_no_job(site):
    site.meta = {**META, "cloned_from": "startup"}
    reply = site.starts().execute("train", Shareable(), site.fl_ctx, Signal())
    assert reason_of(reply) == reasons.NotAClone()
    first = site.lines()[0]
    assert "cloned_from is 'startup'; the id of a job would be right" in first["asks"]["refused"][0]
    assert site.workers == 0


def test_a_job_without_the_egress_filter(site):
    """Its site says so, and trains nothing; of its own settings it says no word."""
    site.edit("app/config/config_fed_client.json", task_result_filters=[])
    (site.folder / "local" / "site.json").write_text('{"data": {"patients": 1}}')
    reply = site.starts().execute("train", Shareable(), site.fl_ctx, Signal())
    assert reason_of(reply) == reasons.Filters(task="train")
    (line,) = site.lines()
    assert line["task"] == "open"
    (site.folder / "local" / "site.json").unlink()
    (site.folder / "job" / "egress.jsonl").unlink()
    site.starts()
    assert "'task_result_filters' must end with" in site.lines()[0]["asks"]["refused"][0]
    assert site.workers == 0


def test_a_job_without_a_valid_experiment(site):
    site.edit("app/config/experiment.json", rounds=3)
    site.starts()
    (line,) = site.lines()
    assert line["asks"]["submitter"]["org"] == "consortium"
    assert line["asks"]["deployment"]["everyone"]
    assert "field 'rounds' is unknown" in line["asks"]["refused"][0]


def test_what_a_site_has_counted(site, monkeypatch, tiny):
    """Second line, when the first task has come."""
    from pt_peft.model.adapted_model import build_model
    from pt_peft.model.planned_exchange import planned_exchange

    exchange = planned_exchange(build_model(tiny.model, None), tiny)
    monkeypatch.setattr(learner_module, "read_exchange", lambda *arguments: exchange)
    learner = site.starts()
    for _ in range(2):
        learner._opened(site.fl_ctx)
    first, second = site.lines()
    assert (first["task"], second["task"]) == ("open", "counted")
    assert second["images"]["train"] == 40
    assert second["exchange"]["tensors"] == sorted(exchange.up(0))
    assert ["by field 'min_train_images'" in one for one in second["refused"]] == [True]


def test_a_simulated_site_that_starts_for_each_task_says_it_once(site):
    site.in_simulator = True
    for _ in range(2):
        PeftLearner()._note_opening(site.fl_ctx)
    assert len(site.lines()) == 1
