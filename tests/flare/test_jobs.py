"""The job writer and the committed job folders."""

import errno
import json
import os
import shutil

import pytest

from helpers import JOBS, ROOT, changed
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.presets import committed_jobs, override, preset
from pt_peft_flare import job_folder
from pt_peft_flare.__main__ import main
from pt_peft_flare.commands.job import STATISTICS
from pt_peft_flare.job_folder import write_job, write_workspace


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", committed_jobs())
def test_committed_jobs_are_what_the_writer_writes(name, tmp_path):
    write_job(committed_jobs()[name], tmp_path / name)
    assert files(tmp_path / name) == files(JOBS / name)


def test_no_other_jobs_are_committed_and_they_differ_in_the_experiment_alone():
    assert {path.name for path in JOBS.iterdir() if path.is_dir()} == {*committed_jobs(), STATISTICS}
    shared = [
        {
            name: content
            for name, content in files(JOBS / job).items()
            if not name.endswith(("experiment.json", "meta.json"))
        }
        for job in committed_jobs()
    ]
    assert all(one == shared[0] for one in shared)


def test_bundle_holds_both_packages(tiny, tmp_path):
    write_job(tiny, tmp_path / "job", bundle=True)
    custom = tmp_path / "job" / "app" / "custom"
    for package, source in (("pt_peft", ROOT / "pt_peft"), ("pt_peft_flare", ROOT / "custom" / "pt_peft_flare")):
        wanted = {name: content for name, content in files(source).items() if "__pycache__" not in name}
        assert files(custom / package) == wanted


def test_sites_are_deployed_by_name(tiny, tmp_path):
    write_job(changed(tiny, federation={"sites": ["east", "west"]}), tmp_path / "job")
    assert json.loads((tmp_path / "job" / "meta.json").read_text())["deploy_map"] == {"app": ["server", "east", "west"]}


def test_a_folder_that_is_no_job_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="is not a job folder"):
        write_job(tiny, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_job_that_was_submitted_is_written_anew(tiny, tmp_path):
    write_job(tiny, tmp_path / "job")
    (tmp_path / "job" / ".__nvfl_sig.json").write_text("{}")
    write_job(changed(tiny, name="other"), tmp_path / "job")
    assert not (tmp_path / "job" / ".__nvfl_sig.json").exists()
    assert Experiment.read(tmp_path / "job" / "app" / "config" / "experiment.json").name == "other"


def test_a_job_is_written_where_the_shell_is(tmp_path, monkeypatch):
    (tmp_path / "my_job").mkdir()
    monkeypatch.chdir(tmp_path / "my_job")
    for name in ("lora", "norm"):
        assert main(["job", name, "--out", "."]) == 0
        assert os.path.samefile(".", tmp_path / "my_job"), "not another folder of its name"
        assert json.loads((tmp_path / "my_job" / "meta.json").read_text())["name"] == "my_job"
    assert files(tmp_path / "my_job").keys() == files(JOBS / "norm").keys()
    assert [path.name for path in tmp_path.iterdir()] == ["my_job"]


@pytest.mark.parametrize("own", ["app/custom/mine.py", "app/config/notes", "thesis.tex"])
def test_files_that_somebody_has_put_into_a_job_are_not_lost(own, tiny, tmp_path):
    job = tmp_path / "job"
    write_job(tiny, job, bundle=True)
    (job / own).write_text("years of work")
    before = files(job)
    with pytest.raises(UserError, match=f"job: has {own}, which the job that would take its place has not"):
        write_job(tiny, job)
    assert files(job) == before


@pytest.mark.parametrize(
    ("full", "bundle"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), True),
    ],
)
def test_a_full_disk_leaves_the_job_that_was_there(full, bundle, tiny, tmp_path, monkeypatch):
    job = tmp_path / "job"
    write_job(tiny, job)
    before = files(job)

    def fail(*_, **__):
        raise full

    monkeypatch.setattr(job_folder.shutil if bundle else job_folder, "copytree" if bundle else "_write_code", fail)
    with pytest.raises(UserError, match=r"job: cannot be written \(.*No space left on device"):
        write_job(changed(tiny, name="other"), job, bundle=bundle)
    assert files(job) == before
    assert {path.name for path in job.iterdir()} == {"meta.json", "app"}


def test_a_job_folder_stays_what_it_is(tiny, tmp_path, capsys):
    job, again = tmp_path / "job", tmp_path / "again"
    write_job(tiny, job, num_gpus=2, statistics=True)
    assert main(["job", str(job), "--out", str(again)]) == 0
    meta = files(job)["meta.json"].replace(b'"job"', b'"again"')
    assert files(again) == files(job) | {"meta.json": meta}
    assert main(["job", str(job), "--out", str(again), "--num-gpus", "0"]) == 0
    assert json.loads((again / "meta.json").read_text())["resource_spec"] == {}
    assert main(["job", str(job / "app" / "config" / "experiment.json"), "--out", str(again)]) == 0
    write_job(tiny, tmp_path / "training" / "again")
    assert files(again) == files(tmp_path / "training" / "again")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("app/config/config_fed_client.json", {**job_folder.CLIENT_CONFIG, "task_result_filters": []}),
        ("app/config/config_fed_server.json", []),
        ("meta.json", {"resource_spec": {"@default": {"num_of_gpus": 1, "num_of_cpus": 8}}}),
        ("meta.json", {"resource_spec": {"@default": {"num_of_gpus": "1"}}}),
        ("meta.json", 5),
        ("app/custom/mine.py", {}),
    ],
)
def test_what_a_job_folder_says_besides_is_not_lost(name, content, tiny, tmp_path, capsys):
    job = tmp_path / "job"
    write_job(tiny, job)
    if name == "meta.json" and isinstance(content, dict):
        content = json.loads((job / name).read_text()) | content
    (job / name).write_text(json.dumps(content))
    assert main(["job", str(job), "--out", str(tmp_path / "again")]) == 1
    assert (
        f"job: {name} says more than the experiment, which would be lost; give {job}/app/config/experiment.json"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "again").exists()


def test_a_site_file_that_says_something_else_is_left_alone(tmp_path):
    write_workspace(Site(threads=2), tmp_path)
    write_workspace(Site(threads=2), tmp_path)
    with pytest.raises(UserError, match=r"site\.json exists and says something else"):
        write_workspace(Site(threads=3), tmp_path)
    assert Site.read(tmp_path / "local" / "site.json").threads == 2


def test_override(tiny):
    assert override(tiny, ["federation.rounds=7", "name=other"]).federation.rounds == 7
    with pytest.raises(UserError, match="'rounds' is not of the form"):
        override(tiny, ["rounds"])
    with pytest.raises(UserError, match=r"--set: field 'federation\.rond' is unknown"):
        override(tiny, ["federation.rond=7"])
    with pytest.raises(UserError, match="goes through 'name'"):
        override(tiny, ["name.x=7"])


def test_command(tiny, tmp_path, capsys):
    (tmp_path / "experiment.json").write_text(tiny.to_json())
    assert main(["job", str(tmp_path / "experiment.json"), "--out", str(tmp_path / "job"), "--set", "seed=3"]) == 0
    assert Experiment.read(tmp_path / "job" / "app" / "config" / "experiment.json").seed == 3
    assert "nvflare simulator" in capsys.readouterr().out
    main(["job", str(tmp_path / "job"), "--out", str(tmp_path / "sites"), "--installed"])
    assert capsys.readouterr().out == f"nvflare job submit -j {tmp_path / 'sites'}\n"
    assert not (tmp_path / "sites" / "app" / "custom").exists()
    assert Experiment.read(tmp_path / "sites" / "app" / "config" / "experiment.json").seed == 3
    many = [f"site-{number}" for number in range(101)]
    (tmp_path / "many.json").write_text(changed(tiny, federation={"sites": many}).to_json())
    assert main(["job", str(tmp_path / "many.json"), "--out", str(tmp_path / "job")]) == 0
    assert capsys.readouterr().out.endswith("-t 101 -m 101\n")  # FLARE's simulator takes 100 without -m
    assert main(["job", "lorra_vpt", "--out", str(tmp_path / "job")]) == 1
    assert (
        "'lorra_vpt' is neither a file, nor 'ham10000', nor 'ridge_probe', nor 'medmnist:<flag>', nor a method "
        "(adaptformer, " in capsys.readouterr().err
    )
    assert main(["job", "lora", "--out", str(tmp_path / "job"), "--num-gpus", "-1"]) == 1
    assert "--num-gpus: is -1; a number of GPUs from 0 to 1024 would be right." in capsys.readouterr().err
    assert main(["job", "a" * 300, "--out", str(tmp_path / "job")]) == 1
    assert "aaa' is neither a file" in capsys.readouterr().err
    assert main(["job", "dvpt+bitfit", "--out", str(tmp_path / "job")]) == 0
    assert Experiment.read(tmp_path / "job" / "app" / "config" / "experiment.json").method.name == "dvpt+bitfit"


def test_a_job_has_no_path_of_a_site(shared, tmp_path):
    write_job(preset("ham10000")[0], tmp_path / "job", bundle=True)
    assert not [name for name, content in files(tmp_path / "job").items() if str(shared).encode() in content]
