"""What a site's people are told of a job."""

import json
import shutil

import pytest

from helpers import changed
from pt_peft.experiment.experiment import Experiment
from pt_peft.presets import demo
from pt_peft_flare.__main__ import main
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.job_request import app_of, deployment_of, submitter_of

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


def shown(capsys, *arguments):
    assert main(["show-job", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def asked(capsys, *arguments):
    return json.loads(shown(capsys, *arguments, "--json"))


def test_before_it_runs(job, experiment, capsys):
    found = asked(capsys, job)
    assert found["digest"] == experiment.digest()
    assert found["submitter"] is None
    assert found["deployment"] == {"everyone": True, "sites": [], "other_apps": {}}
    assert found["images"] is None
    assert found["data"]["most_images"] == IMAGES
    assert "head.weight" in found["exchange"]["tensors"]
    assert found["exchange"]["bytes_up"] == found["exchange"]["bytes_down"] == 4 * found["exchange"]["parameters"]
    assert found["refused"] is None
    text = shown(capsys, job)
    assert f"{found['exchange']['bytes_up']:,} bytes a round" in text
    assert "sites       all of the federation" in text
    assert "from        not submitted yet" in text


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
    assert "train 24, val 8, test 12 of this site" in text


def test_a_job_for_one_site_is_outside_the_default_limits(running, kit, capsys):
    (kit / "local" / "site.json").write_text("{}")
    found = asked(capsys, running)
    assert "by field 'min_sites' of its limits" in found["refused"]
    assert found["deployment"]["sites"] == ["hospital-1"]


def test_too_few_images_are_outside_the_default_limits(job, tmp_path, capsys):
    (tmp_path / "site.json").write_text("{}")
    found = asked(capsys, job, "--site", tmp_path / "site.json", "--name", "hospital-1")
    assert "by field 'min_train_images' of its limits" in found["refused"]
    assert found["images"] == IMAGES


def test_limits_refuse_it_before_anything_is_computed(job, tmp_path, capsys):
    site = tmp_path / "site.json"
    site.write_text('{"limits": {"methods": ["lora"]}}')
    found = asked(capsys, job, "--site", site)
    assert "it asks for method bitfit; allowed: lora" in found["refused"]
    assert found["exchange"] is None
    assert "refused     the site refuses the job by field 'methods'" in shown(capsys, job, "--site", site)


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
        (lambda job: (job / "meta.json").write_text("{"), (), "cannot be read"),
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
