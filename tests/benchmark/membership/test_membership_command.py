"""``python -m benchmark membership``: what models tell, what is kept and gone on with, and mistakes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image

from benchmark.__main__ import main
from benchmark.membership import kept as kept_module
from benchmark.membership.kept import Kept
from benchmark.membership.models import Design, Observed, Subject, observe
from benchmark.report.blocks import NONE
from helpers import ROOT, changed
from pt_peft.experiment.site import Site
from pt_peft.presets import demo

STILL = {"learning_rate": 1e-12, "local_epochs": 1}
ATTACKS = {"loss threshold", "LiRA offline", "LiRA online"}
MODELS = 6


@pytest.fixture(scope="module")
def site_file(tiny_weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("site") / "site.json"
    path.write_text(json.dumps({"backbone": str(tiny_weights)}))
    return path


@pytest.fixture(scope="module")
def quick(tiny):
    """An experiment that takes a second."""
    data = {"images_per_site": {"train": 12, "val": 1, "test": 1}, "augment": []}
    return changed(tiny, data=data, federation={"rounds": 1, "sites": ["s1", "s2"]})


@pytest.fixture(scope="module")
def audit(site_file, tmp_path_factory):
    """Runs the command on experiments, and gives its exit code and result file."""

    def run(*experiments, out: Path | None = None, options: tuple[str, ...] = ()) -> tuple[int, Path]:
        folder = tmp_path_factory.mktemp("audit")
        files = []
        for index, experiment in enumerate(experiments):
            files.append(folder / f"{index}.json")
            files[-1].write_text(experiment.to_json())
        out = out or folder / "result.json"
        command = ["membership", *map(str, files), "--shadows", str(MODELS - 2), "--site-file", str(site_file)]
        return main([*command, "--out", str(out), *options]), out

    return run


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.with_name(out.name + ".models").glob("*.npz")}


@pytest.fixture(scope="module")
def two(audit, quick, tmp_path_factory) -> Path:
    """A model that memorises, and one that does not move."""
    site = tmp_path_factory.mktemp("embedded") / "site.json"
    site.write_text("{}")
    memory = changed(
        quick,
        name="memory",
        backbone=demo("lora")[0].backbone.model_dump(mode="json"),
        method={"name": "lora", "options": {}},
        training={"learning_rate": 5e-3, "local_epochs": 3},
        federation={"rounds": 6},
        data={"images_per_site": {"train": 24, "val": 1, "test": 1}},
    )
    still = changed(memory, name="still", training=STILL, federation={"rounds": 1})
    code, out = audit(memory, still, options=("--site-file", str(site)))
    assert code == 0
    return out


def test_a_model_that_memorises_is_found_out(two):
    memory = read(two)["audits"][0]
    assert memory["accuracy"]["members"]["value"] > 0.95 > 0.8 > memory["accuracy"]["others"]["value"]
    assert set(memory["attacks"]) == ATTACKS
    for attack, by_site in memory["attacks"].items():
        assert set(by_site) == {"all", "s1", "s2"}
        for found in by_site.values():
            assert found["auc"]["low"] > 0.6, attack
            assert len(found["targets"]) == MODELS
            assert found["auc"]["value"] == pytest.approx(np.mean([one["auc"] for one in found["targets"]]))
    found = memory["attacks"]["LiRA offline"]["all"]
    assert found["advantage"]["value"] == pytest.approx(2 * found["balanced_accuracy"]["value"] - 1)
    assert found["tpr"] == {"0.01": None, "0.001": None}  # of 24 others


def test_a_model_that_does_not_move_tells_nothing(audit, quick):
    code, out = audit(changed(quick, training=STILL, data={"images_per_site": {"train": 100, "val": 1, "test": 1}}))
    assert code == 0
    (still,) = read(out)["audits"]
    for attack, by_site in still["attacks"].items():
        for of, found in by_site.items():
            # t of 5 degrees of freedom: the half interval of 99.9 % is 2.67 times that of 95 %, and there are nine.
            half = 2.67 * (found["auc"]["high"] - found["auc"]["value"])
            assert found["auc"]["value"] == pytest.approx(0.5, abs=half), (attack, of)
        assert by_site["all"]["auc"]["value"] == pytest.approx(0.5, abs=0.05), attack
        chance = still["counts"]["all"]["balanced_accuracy_by_chance"]
        assert by_site["all"]["balanced_accuracy"]["value"] == pytest.approx(chance, abs=0.05), attack
        assert by_site["all"]["tpr"]["0.01"]["value"] < 0.1
        assert by_site["s1"]["tpr"]["0.01"] is None


def test_the_result_says_what_it_is_of(two):
    result = read(two)
    assert result["design"]["models"] == MODELS
    assert result["provenance"]["versions"]["torch"]
    for one in result["audits"]:
        assert one["counts"]["s1"].items() >= {"members": 12, "others": 12}.items()
        assert one["sites"] == {"s1": 24, "s2": 24}
        assert len(one["digest"]) == 64
        assert one["experiment"]["name"] == one["name"]
    (difference,) = result["differences"]
    assert (difference["of"], difference["to"]) == ("still", "memory")
    change = difference["auc"]["LiRA online"]["all"]
    first, second = (one["attacks"]["LiRA online"]["all"]["auc"]["value"] for one in result["audits"])
    assert change["value"] == pytest.approx(second - first)
    assert change["high"] < 0


def test_what_is_there_is_used_and_what_is_stale_or_damaged_is_not(audit, quick, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert audit(quick, out=out)[0] == 0
    first, result = stamps(out), read(out)
    table = capsys.readouterr().out
    assert "| tiny | LiRA online | s2 | 6 | 6 |" in table
    assert f"{NONE} | {NONE} |" in table
    assert len(first) == MODELS
    kept = out.with_name("result.json.models")
    gone, damaged, foreign, *whole = sorted(first)
    (kept / gone).unlink()
    (kept / damaged).write_bytes((kept / damaged).read_bytes()[:300])
    (kept / foreign).write_bytes((kept / whole[0]).read_bytes())  # another model's
    assert audit(quick, out=out, options=("--json",))[0] == 0
    again = json.loads(capsys.readouterr().out)
    assert again == read(out)
    assert again["audits"][0]["attacks"] == result["audits"][0]["attacks"], "the same model gives the same answers"
    second = stamps(out)
    assert {name for name in second if second[name] != first.get(name)} == {gone, damaged, foreign}
    for options, experiment in ((("--seed", "1"), quick), ((), changed(quick, training={"learning_rate": 2e-3}))):
        before = stamps(out)
        assert audit(experiment, out=out, options=options)[0] == 0
        assert before.items() <= stamps(out).items()
        assert len(stamps(out)) == len(before) + MODELS
        assert read(out)["audits"][0]["attacks"] != result["audits"][0]["attacks"]


def test_what_was_kept_is_of_one_experiment_image_model_design_and_code(quick, tmp_path, monkeypatch):
    subject = Subject("a", quick, Site(), ("s1", "s2"))
    design = Design(seed=0, shadows=4)
    answers = Observed(np.ones(1, bool), np.ones((1, 1)), np.ones(1, bool), 1.0)
    Kept(tmp_path, design).write(subject, "images", 0, answers)
    other = Subject("a", changed(quick, seed=5), Site(), ("s1", "s2"))

    def is_there(design=design, subject=subject, images="images", model=0) -> bool:
        return Kept(tmp_path, design).read(subject, images, model) is not None

    assert is_there()
    assert is_there(design=Design(seed=0, shadows=8)), "goes on with what is there"
    assert not is_there(design=Design(seed=1, shadows=4))
    assert not is_there(subject=other)
    assert not is_there(images="others")
    assert not is_there(model=1)
    monkeypatch.setattr(kept_module, "code_key", lambda *modules: "other")
    assert not is_there()


def test_more_shadows_go_on_with_the_models_that_are_there(audit, quick, tmp_path):
    out = tmp_path / "result.json"
    assert audit(quick, out=out)[0] == 0
    before = stamps(out)
    assert audit(quick, out=out, options=("--shadows", "6"))[0] == 0
    after = stamps(out)
    assert before.items() <= after.items()
    assert len(after) == 8
    assert read(out)["design"]["models"] == 8


def test_flips_and_a_known_seed(audit, quick, tmp_path):
    still = changed(quick, training=STILL)
    of_models = {}
    for name, options in (("known", ("--flips", "--known-seed")), ("own", ())):
        out = tmp_path / f"{name}.json"
        assert audit(still, out=out, options=options)[0] == 0
        design = read(out)["design"]
        assert (design["queries"], design["known_seed"]) == ((4, True) if options else (1, False))
        assert len(stamps(out)) == MODELS
        of_models[name] = np.stack([answers(out.with_name(f"{out.name}.models") / file) for file in stamps(out)])
    known, own = of_models["known"], of_models["own"]
    assert known.shape == (MODELS, 24, 4)
    assert own.shape == (MODELS, 24, 1)
    assert all((known[:, :, 0] != known[:, :, flip]).any() for flip in (1, 2, 3))
    # Models that do not move: one start is one model.
    assert known.std(axis=0).max() < 1e-5
    assert own.std(axis=0).min() > 1e-3


def answers(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["confidences"]


def test_an_interrupted_audit_goes_on(audit, quick, tmp_path, monkeypatch, capsys):
    out = tmp_path / "result.json"
    trained = []

    def interrupted(subject, design, model):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(model)
        return observe(subject, design, model)

    with monkeypatch.context() as patched:
        patched.setattr("benchmark.membership.audit.observe", interrupted)
        assert audit(quick, out=out)[0] == 130
    before = stamps(out)
    assert len(before) == 2
    assert not out.exists()
    assert audit(quick, out=out)[0] == 0
    assert before.items() <= stamps(out).items()
    assert len(stamps(out)) == MODELS


@pytest.mark.slow
def test_a_killed_audit_on_two_processes_leaves_nothing_running_and_goes_on(audit, quick, site_file, tmp_path):
    out, experiment = tmp_path / "result.json", tmp_path / "quick.json"
    experiment.write_text(quick.to_json())
    command = [
        sys.executable,
        "-m",
        "benchmark",
        "membership",
        str(experiment),
        "--shadows",
        str(MODELS - 2),
        "--jobs",
        "2",
    ]
    children = []
    with subprocess.Popen([*command, "--site-file", str(site_file), "--out", str(out)], cwd=ROOT) as process:

        def first_model() -> bool:
            children[:] = psutil.Process(process.pid).children(recursive=True)
            return len(stamps(out)) >= 1

        try:
            wait_for(first_model)
        finally:
            process.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 60)
    before = stamps(out)
    assert len(children) >= 2
    assert before
    assert not out.exists()
    assert audit(quick, out=out, options=("--jobs", "2"))[0] == 0
    assert before.items() <= stamps(out).items()
    assert audit(quick, out=tmp_path / "one.json")[0] == 0
    assert read(out)["audits"][0]["attacks"] == read(tmp_path / "one.json")["audits"][0]["attacks"]


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_mistakes(audit, quick, tmp_path, capsys):
    def refusal(*experiments, options=(), out=None) -> str:
        assert audit(*experiments, options=options, out=out)[0] == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    assert "--shadows is 2; an even number, 4 or more, would be right" in refusal(quick, options=("--shadows", "2"))
    assert "--shadows is 7; an even number" in refusal(quick, options=("--shadows", "7"))
    assert "--jobs is 0; at least 1" in refusal(quick, options=("--jobs", "0"))
    assert "--seed is -1; a number from 0" in refusal(quick, options=("--seed", "-1"))
    assert "is a folder; the name of a file" in refusal(quick, out=tmp_path)
    assert "is not a folder" in refusal(quick, out=tmp_path / "no" / "out.json")
    assert "are the same experiment" in refusal(quick, quick)
    assert "--sites: the experiment names no sites" in refusal(changed(quick, federation={"sites": []}))
    single = changed(quick, data={"images_per_site": {"train": 1}})
    assert "site 's1' has 1 training image(s); at least 2 would be right" in refusal(single)
    local = changed(quick, method={"head": "local"})
    assert "'head.bias' stays at its site" in refusal(local)
    several = changed(quick, data={"source": "site", "task": "multilabel", "images_per_site": {"train": 12}})
    assert "field 'data.task' is 'multilabel'" in refusal(several)
    out = tmp_path / "locked.json"
    (tmp_path / "locked.json.models").mkdir()
    with FileLock(tmp_path / "locked.json.models" / ".lock"):
        assert "another process is writing its models there" in refusal(quick, out=out)


def test_what_is_no_job(tmp_path, capsys):
    assert main(["membership", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 1
    assert "is not a job folder: it has no app/config/experiment.json" in capsys.readouterr().err
    assert main(["membership", "lorra", "--out", str(tmp_path / "out.json")]) == 1
    assert "'lorra' is neither a file" in capsys.readouterr().err


def test_a_site_without_images(audit, quick, tmp_path, capsys):
    rows = ["file,label,split,site"]
    for index in range(4):
        Image.fromarray(np.full((40, 40, 3), 50 * index, np.uint8)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{'ab'[index % 2]},train,s1")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    site = tmp_path / "site.json"
    own = {"table": "table.csv", "images": ".", "columns": {"site": "site"}, "pooled": True}
    site.write_text(json.dumps({"data": own}))
    assert (
        audit(
            changed(quick, data={"source": "site"}, partition={"kind": "natural"}), options=("--site-file", str(site))
        )[0]
        == 1
    )
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "s2" in said
