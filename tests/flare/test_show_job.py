"""What a site's people are told of a job."""

import json
import shutil

import pytest

from helpers import changed
from pt_peft.experiment.admission import SITE_CLASSES
from pt_peft.experiment.deployment import app_of, deployment_of
from pt_peft.experiment.experiment import Experiment
from pt_peft.presets import demo
from pt_peft_flare.__main__ import main
from pt_peft_flare.job_folder import CLIENT_CONFIG, write_job
from pt_peft_flare.job_request import app_digest, submitter_of


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


IMAGES = {"train": 24, "val": 8, "test": 12}


@pytest.fixture
def experiment() -> Experiment:
    return changed(demo("bitfit")[0], data={"images_per_site": IMAGES})


@pytest.fixture
def job(experiment, tmp_path):
    write_job(experiment, tmp_path / "my_job", installed=True)
    return tmp_path / "my_job"


@pytest.fixture
def kit(tmp_path):
    """A start-up kit, as far as it matters here."""
    for name, content in {"startup/rootCA.pem": "", "local/site.json": '{"limits": null}'}.items():
        (tmp_path / "kit" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kit" / name).write_text(content)
    return tmp_path / "kit"


@pytest.fixture
def running(kit, job):
    """The same job, as FLARE deploys it at a site."""
    folder = kit / "1234"
    shutil.copytree(job / "app", folder / "app_hospital-1")
    meta = {
        **json.loads((job / "meta.json").read_text()),
        "deploy_map": {"app": ["server", "hospital-1"]},
        "job_clients": [{"name": "hospital-1"}],
        "submitter_name": "lead@consortium.example",
        "submitter_org": "consortium",
        "submitter_role": "lead",
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def shown(capsys, *arguments, code=0):
    assert main(["show-job", *map(str, arguments)]) == code
    return capsys.readouterr().out


def asked(capsys, *arguments, code=0):
    return json.loads(shown(capsys, *arguments, "--json", code=code))


def test_before_it_runs(job, experiment, capsys):
    found = asked(capsys, job)
    assert found["digest"] == app_digest(job / "app")
    assert found["submitter"] is None
    assert found["deployment"] == {"everyone": True, "sites": [], "other_apps": {}}
    assert found["images"] is None
    assert found["data"]["most_images"] == IMAGES
    assert "head.weight" in found["exchange"]["tensors"]
    assert found["exchange"]["bytes_up"] == found["exchange"]["bytes_down"] == 4 * found["exchange"]["parameters"]
    assert (found["limits"], found["refused"], found["off"], found["code"]) == ("not checked", [], None, [])
    text = shown(capsys, job)
    assert "limits      not checked (give --site)" in text
    assert f"{found['exchange']['bytes_up']:,} bytes a round" in text
    assert "sites       all of the federation" in text
    assert "from        not submitted yet" in text


def test_a_precision_that_the_site_decides_is_said_to_be_so(experiment, tmp_path, capsys):
    write_job(changed(experiment, training={"precision": "auto"}), tmp_path / "auto", installed=True)
    text = shown(capsys, tmp_path / "auto")
    assert "precision   auto: bfloat16 where this site's device is fast at it, else float32\n" in text


def test_an_archive_says_the_same(job, tmp_path, capsys):
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "my_job")
    assert asked(capsys, tmp_path / "packed.zip") == asked(capsys, job)


def test_while_it_runs(running, kit, capsys):
    found = asked(capsys, running)
    assert asked(capsys, "1234", "--kit", kit) == found
    assert found["images"] == IMAGES
    assert found["deployment"] == {"everyone": False, "sites": ["hospital-1"], "other_apps": {}}
    assert found["submitter"] == {
        "name": "lead@consortium.example",
        "org": "consortium",
        "role": "lead",
        "signed": False,
    }
    text = shown(capsys, running)
    assert "A PART OF THE SITES: hospital-1 ALONE" in text
    assert "lead@consortium.example, lead of consortium (not signed; the server says so)" in text
    assert "images      train 24, val 8, test 12\n" in text
    assert "a round     1 epoch(s) in batches of 8: 3 step(s)\n" in text
    assert "            at most 1800 s at this site, 3600 s in all\n" in text
    assert "precision   float32\n" in text
    assert "aggregation mean, weighting samples\n" in text
    assert f"receives    {found['exchange']['bytes_down']:,} bytes a round\n" in text
    assert "{" not in text


def test_statistics_that_a_job_asks_for_are_said_with_their_bytes(experiment, tmp_path, capsys):
    write_job(changed(experiment, head={"finish": "ridge"}), tmp_path / "solved", installed=True)
    found = asked(capsys, tmp_path / "solved")
    width = 96
    counts, moments, choice = found["exchange"]["statistics"]
    assert counts == {
        "stage": "counts at the finish", "tensors": ["statistics/counts"], "bytes_up": 8 * 4, "bytes_down": 0,
    }  # fmt: skip
    assert moments["bytes_up"] == 8 * (4 + 4 * width + width * (width + 1) // 2)
    assert choice["bytes_down"] == found["exchange"]["bytes_down"] + 8 * 4 + moments["bytes_up"]
    text = shown(capsys, tmp_path / "solved")
    chosen = "penalties 0.0001, 0.001, 0.01, 0.1, 1.0 by validation, with a temperature"
    assert f"head        start seed, finish ridge; {chosen}\n" in text
    assert "statistics  counts at the finish: 32 bytes of statistics/counts; receives 0\n" in text
    assert f"            moments at the finish: {moments['bytes_up']:,} bytes of statistics/counts, " in text


def test_a_job_without_rounds_sends_no_tensors_of_a_round(experiment, tmp_path, capsys):
    solved = changed(experiment, head={"start": "ridge", "choose_by": "leave_one_out"}, federation={"rounds": 0})
    write_job(solved, tmp_path / "solved", installed=True)
    text = shown(capsys, tmp_path / "solved")
    assert "sends       statistics alone\n" in text
    assert "receives    the model to evaluate, " in text
    assert "rounds      none: nothing is trained, the classifier follows from the statistics\n" in text
    assert "a stage     results of at least 2 site(s), at most 1800 s at this site, 3600 s in all\n" in text
    assert "by leave one out, with a temperature\n" in text
    assert "bytes a round" not in text
    assert "epoch" not in text


def test_a_job_for_one_site_is_outside_the_default_limits(running, kit, capsys):
    (kit / "local" / "site.json").write_text("{}")
    found = asked(capsys, running, code=1)
    assert found["limits"] == "refused"
    assert "it asks for a job that is deployed to 1 site(s)" in found["refused"][0]
    assert found["deployment"]["sites"] == ["hospital-1"]


def test_too_few_images_are_outside_the_default_limits(job, tmp_path, capsys):
    (tmp_path / "site.json").write_text("{}")
    found = asked(capsys, job, "--site", tmp_path / "site.json", "--name", "hospital-1", code=1)
    (refused,) = found["refused"]
    assert "by field 'min_train_images' of its limits" in refused
    assert found["images"] == IMAGES


def test_all_that_is_refused_is_said(experiment, tmp_path, capsys):
    """What travels too."""
    much = {"rounds": 5000, "min_sites": 1}
    write_job(changed(experiment, federation=much, training={"local_epochs": 101}), tmp_path / "much", installed=True)
    site = tmp_path / "site.json"
    site.write_text('{"limits": {"methods": ["lora"], "bytes_per_round": 100}}')
    found = asked(capsys, tmp_path / "much", "--site", site, code=1)
    fields = [one.partition("by field '")[2].partition("'")[0] for one in found["refused"]]
    assert fields == ["methods", "min_sites", "max_rounds", "max_local_epochs", "bytes_per_round", "min_train_images"]
    assert found["exchange"]["bytes_up"] > 100
    text = shown(capsys, tmp_path / "much", "--site", site, code=1)
    assert "limits      refused\nrefused     the site refuses the job by field 'methods' of its limits" in text
    assert "sends       " in text


def test_a_job_is_allowed(job, tmp_path, capsys):
    (tmp_path / "site.json").write_text('{"limits": {"min_train_images": 24}}')
    text = shown(capsys, job, "--site", tmp_path / "site.json")
    assert "limits      allowed\n" in text
    assert "refused" not in text


def test_limits_that_are_off_are_said(job, tmp_path, capsys):
    (tmp_path / "site.json").write_text('{"limits": null}')
    found = asked(capsys, job, "--site", tmp_path / "site.json")
    assert found["limits"] == "allowed"
    assert ["by field 'min_train_images'" in one for one in found["off"]] == [True]
    text = shown(capsys, job, "--site", tmp_path / "site.json")
    assert "limits      ALL OFF, by null; the defaults would refuse the job:\n            the site refuses" in text


def test_a_model_that_is_too_large_is_refused_and_not_built(job, tmp_path, capsys):
    (tmp_path / "site.json").write_text('{"limits": {"max_memory_gb": 1e-6, "min_train_images": 1}}')
    found = asked(capsys, job, "--site", tmp_path / "site.json", code=1)
    assert ["by field 'max_memory_gb'" in one for one in found["refused"]] == [True]
    assert found["exchange"] is None


def without_filter(job):
    edit(job / "app" / "config" / "config_fed_client.json", task_result_filters=[])


def inwards(job):
    """FLARE applies these filters to results that come, of which a site has none."""
    chain = {**CLIENT_CONFIG["task_result_filters"][0], "direction": "IN"}
    edit(job / "app" / "config" / "config_fed_client.json", task_result_filters=[chain])


def with_code(job):
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "evil.py").write_text("import os")


def with_another_class(job):
    edit(job / "app" / "config" / "config_fed_client.json", components=[{"id": "a", "path": "os.system", "args": {}}])


def in_another_format(job):
    path = job / "app" / "config" / "config_fed_client.json"
    path.rename(path.with_suffix(".conf"))


MALICE = {
    without_filter: "'task_result_filters' must end with pt_peft_flare.filters.EgressFilter for task 'train'",
    inwards: "'task_result_filters' must end with pt_peft_flare.filters.EgressFilter for task 'train'",
    with_code: "the job brings code (custom/evil.py), which this site does not take",
    with_another_class: "config_fed_client.json, components[0]: class 'os.system' is not in class_allow_list",
    in_another_format: "config_fed_client.json: cannot be read",
}


@pytest.mark.parametrize("spoil", MALICE)
@pytest.mark.parametrize("known", ["job", "site", "kit"])
def test_a_job_that_is_more_than_its_experiment(spoil, known, job, running, kit, tmp_path, capsys):
    """Each is refused, shown and another job by its digest."""
    (tmp_path / "site.json").write_text('{"limits": {"min_sites": null, "min_train_images": null}}')
    before = app_digest(job / "app")
    spoil(job)
    where = [job]
    if known == "site":
        where += ["--site", tmp_path / "site.json"]
    elif known == "kit":
        shutil.rmtree(running / "app_hospital-1")
        shutil.copytree(job / "app", running / "app_hospital-1")
        where = [running]
    found = asked(capsys, *where, code=1)
    assert MALICE[spoil] in found["refused"][0]
    assert found["digest"] != before
    assert f"refused     {found['refused'][0]}" in shown(capsys, *where, code=1)
    assert ("THE JOB BRINGS CODE: evil.py" in shown(capsys, *where, code=1)) == (spoil is with_code)


def test_what_a_kit_allows_is_the_sites(running, kit, capsys):
    """Its class_allow_list, of which a copy replaces the default, and whether it takes code."""
    config = running / "app_hospital-1" / "config" / "config_fed_client.json"
    edit(config, components=[{"id": "a", "path": "own.widgets.Counter", "args": {}}])
    default, own = (kit / "local" / name for name in ("resources.json.default", "resources.json"))
    default.write_text(json.dumps({"class_allow_list": [*SITE_CLASSES, "own.widgets"]}))
    shown(capsys, running)
    own.write_text(json.dumps({"class_allow_list": SITE_CLASSES}))
    assert "class 'own.widgets.Counter' is not in class_allow_list" in asked(capsys, running, code=1)["refused"][0]
    (running / "app_hospital-1" / "custom").mkdir()
    (running / "app_hospital-1" / "custom" / "own.py").write_text("")
    policy = kit / "local" / "authorization.json.default"
    policy.write_text(json.dumps({"permissions": {"lead": {"byoc": "none"}, "member": {"view": "any"}}}))
    assert "brings code (custom/own.py)" in asked(capsys, running, code=1)["refused"][0]
    policy.write_text(json.dumps({"permissions": {"lead": {"byoc": "any"}}}))
    assert asked(capsys, running)["code"] == ["own.py"]


def test_the_digest_is_the_same_at_the_lead_and_at_a_site(experiment, tmp_path):
    write_job(experiment, tmp_path / "folder")  # with the README that --installed leaves out
    write_job(experiment, tmp_path / "submitted", installed=True)
    (tmp_path / "submitted" / "app" / ".__nvfl_sig.json").write_text("{}")
    assert app_digest(tmp_path / "folder" / "app") == app_digest(tmp_path / "submitted" / "app")
    edit(tmp_path / "submitted" / "app" / "config" / "config_fed_server.json", workflows=[])
    assert app_digest(tmp_path / "folder" / "app") != app_digest(tmp_path / "submitted" / "app")


def test_a_ranks_bytes_are_the_sites_own(tmp_path, capsys):
    experiment = changed(demo("lora")[0], federation={"lora_ranks": {"small": 1}, "sites": ["large", "small"]})
    write_job(experiment, tmp_path / "ranks")
    large, small = (asked(capsys, tmp_path / "ranks", "--name", name)["exchange"] for name in ("large", "small"))
    assert small["bytes_up"] < large["bytes_up"]


@pytest.mark.parametrize(
    ("meta", "site", "expected"),
    [
        ({"app": ["@ALL"]}, "a", ("app", {"everyone": True, "sites": ["a", "b"], "other_apps": {}})),
        ({"app": ["@all"]}, "a", ("app", {"everyone": True, "sites": ["a", "b"], "other_apps": {}})),
        (
            {"one": ["server", "b", "a"], "two": [{"sites": ["c"]}], "three": ["server"]},
            "a",
            ("one", {"everyone": False, "sites": ["a", "b"], "other_apps": {"two": ["c"]}}),
        ),
        ({"app": {"targets": ["a"]}}, "a", ("app", {"everyone": False, "sites": ["a"], "other_apps": {}})),
        ({"app": "@ALL"}, "a", ("app", {"everyone": True, "sites": ["a", "b"], "other_apps": {}})),
        ({"app": ["server", "b"]}, "a", (None, {"everyone": False, "sites": [], "other_apps": {"app": ["b"]}})),
    ],
)
def test_to_whom_a_job_is_deployed(meta, site, expected):
    meta = {"deploy_map": meta, "job_clients": [{"name": "b"}, {"name": "a"}]}
    app = app_of(meta, site)
    assert (app, deployment_of(meta, app)) == expected


def test_a_signature_that_cannot_be_checked_is_none(job, kit):
    assert submitter_of({}, job / "app", kit / "startup" / "rootCA.pem") is None


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (lambda job: (job / "meta.json").unlink(), (), "is no job: it has no meta.json"),
        (lambda job: (job / "meta.json").write_text("{}"), (), "has no field 'deploy_map'"),
        (lambda job: (job / "meta.json").write_text("{"), (), "is not valid JSON"),
        (lambda job: (job / "meta.json").write_text("[" * 100_000), (), "is not valid JSON"),
        (lambda job: (job / "meta.json").write_text('{"deploy_map": {"app": [1]}}'), (), "is not as FLARE writes it"),
        (lambda job: None, ("--kit", "."), "is not a start-up kit"),
        (
            lambda job: (job / "meta.json").write_text('{"deploy_map": {"app": ["server", "b"]}}'),
            ("--name", "a"),
            "nothing in it goes to 'a'",
        ),
        (
            lambda job: (job / "meta.json").write_text('{"deploy_map": {"app": ["a"], "other": ["b"]}}'),
            (),
            "has 2 apps (app, other) for different sites; say by --name for which",
        ),
    ],
)
def test_mistakes_are_one_sentence(break_it, arguments, message, job, capsys):
    break_it(job)
    assert main(["show-job", str(job), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_archive_that_would_fill_the_disk_is_not_unpacked(tmp_path, monkeypatch, capsys):
    from pt_peft_flare.commands import show_job

    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "meta.json").write_text(" " * 2000)
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "large")
    monkeypatch.setattr(show_job, "MOST_BYTES", 1000)
    assert main(["show-job", str(tmp_path / "packed.zip")]) == 1
    assert "unpacks to 2000 bytes; a job has at most 1000" in capsys.readouterr().err
