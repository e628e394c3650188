"""benchmark.speed.device: each part at a tiny size, the time it may take, and what is kept when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmark.speed.device import accuracy, contract, levers, pack, sites, speed
from benchmark.speed.device.budget import SHARES, Budget
from benchmark.speed.device.cases import ARCHITECTURES, CLASSES, SPEED_CLASSES, Architecture, Case, cases
from benchmark.speed.device.contract import read_outcomes
from benchmark.speed.device.half import chosen
from benchmark.speed.device.machine import origin
from benchmark.speed.device.pace import Pace
from benchmark.speed.device.plain_loop import PlainLoop, _moved
from benchmark.speed.device.precision import precision_pairs
from benchmark.speed.device.results import FILE, SUMMARY, Results, read
from benchmark.speed.device.speed import Loops, Weights, measure, rounds_of
from benchmark.speed.device.steps import NoTime, Runner, Skipped, Step
from benchmark.speed.device.summary import summary
from helpers import ROOT
from pt_peft.data.views import VIEWS, view
from pt_peft.errors import UserError
from pt_peft.model.model_input import Precision
from pt_peft.training.trainer import LocalTrainer

CPU = torch.device("cpu")
TINY = Architecture(
    "vit_tiny_patch16_224", 32, 48, 2, 8, {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
)


def case(method: str = "lora", precision: Precision = "float32") -> Case:
    return Case("tiny", method, precision, 4, TINY)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# Time


def test_a_section_may_take_its_share_and_what_was_left():
    clock = Clock()
    budget = Budget(10, 100.0, clock)
    assert sum(SHARES.values()) == pytest.approx(1)
    assert budget.left() == 585
    assert budget.left("machine") == pytest.approx(0.02 * 585)
    assert budget.left("speed") == pytest.approx(0.6 * 585)
    clock.now += 100
    assert budget.left() == 485
    assert budget.left("accuracy") == pytest.approx(485)
    assert budget.left("contract") < 0
    late = Budget(1, 70.0, Clock())  # its imports took half of the time
    assert late.left() == 24
    assert late.left("machine") == pytest.approx(0.02 * 24)


def test_steps_that_do_not_fit_are_left_out_and_get_a_second_chance(tmp_path, capsys):
    clock = Clock()
    results = Results(tmp_path / "out")
    budget = Budget(10, 100.0, clock)
    ran = []

    def step(section, name, seconds, **options):
        def run(left):
            ran.append((name, round(left)))
            clock.now += seconds
            return {"value": seconds}

        return Step(section, name, run, lambda: seconds, **options)

    def broken(left):
        raise RuntimeError("out of luck")

    def needless(left):
        raise Skipped("there is none")

    steps = [
        step("contract", "too long for its section", 200),
        step("speed", "short", 10),
        Step("speed", "broken", broken),
        Step("speed", "needless", needless),
        step("sites", "too long for all", 900),
        step("accuracy", "last", 5),
    ]
    Runner(budget, results, steps).run()
    assert ran == [("short", 351), ("last", 575), ("too long for its section", 570)]
    assert [(one["step"], one["status"]) for one in read(tmp_path / "out")] == [
        ("too long for its section", "skipped"),
        ("short", "done"),
        ("broken", "failed"),
        ("needless", "skipped"),
        ("too long for all", "skipped"),
        ("last", "done"),
        ("too long for its section", "done"),
    ]
    records = {one["step"]: one for one in read(tmp_path / "out")}
    assert records["broken"]["why"] == "RuntimeError: out of luck"
    assert any("raise RuntimeError" in line for line in records["broken"]["traceback"])
    assert records["too long for all"]["why"] == "takes about 900 s or more; 429 s were left"
    text = (tmp_path / "out" / SUMMARY).read_text()
    assert "| sites | too long for all | skipped | takes about 900 s or more; 429 s were left |" in text
    assert "| contract | too long" not in text


def test_the_time_ends_even_in_the_middle_of_a_step(tmp_path, capsys):
    results, ended = Results(tmp_path), []

    def run(left):
        runner.watch(ended.append)
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
        return {}

    steps = [Step("accuracy", name, run, lambda: -10) for name in ("endless", "next")]
    runner = Runner(Budget(1, time.monotonic() - 56.9), results, steps)  # 54 s are usable, 3 more are waited
    runner.run()
    assert ended[0] == 0
    assert [(one["step"], one["status"], one["why"]) for one in read(tmp_path)[:2]] == [
        ("endless", "failed", "the time was over before it ended"),
        ("next", "skipped", "the time was over before its turn"),
    ]


def test_time_that_is_over_before_the_first_step_is_told(tmp_path, capsys):
    runner = Runner(Budget(1, time.monotonic() - 90), Results(tmp_path), [Step("machine", "machine", lambda left: {})])
    runner.watch(lambda code: None).join()
    assert "machine, machine: skipped: the time was over before its turn" in capsys.readouterr().out
    assert "| machine | machine | skipped |" in (tmp_path / SUMMARY).read_text()


def test_sections_without_a_result_come_first_in_the_second_chance(tmp_path, capsys):
    clock, ran = Clock(), []

    def step(section, name, needs):
        def run(left):
            ran.append(name)
            clock.now += 10
            return {}

        return Step(section, name, run, lambda: needs)

    steps = [step("speed", "quick", 1), step("speed", "late", 400), step("sites", "a", 450), step("sites", "b", 450)]
    Runner(Budget(10, 100.0, clock), Results(tmp_path), steps).run()
    assert ran == ["quick", "a", "late", "b"]


def test_results_outlive_a_kill(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from benchmark.speed.device.results import Results;"
        "results = Results(Path(sys.argv[1])); results.add('contract', 'one', 'done', 1.0, {'a': 1});"
        "results.add('contract', 'two', 'failed', 1.0, {'why': 'b'}); print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"section": "contr')  # a line that was cut off
    assert [one["step"] for one in read(tmp_path)] == ["one", "two"]
    assert "| contract | two | failed | b |" in (tmp_path / SUMMARY).read_text()
    with pytest.raises(UserError, match="has results already"):
        Results(tmp_path)


def test_pace_scales_the_nearest_step():
    pace = Pace(CPU)
    small, large = case(), Case("b", "lora", "float32", 4, replace(TINY, depth=8))
    assert pace.step(small) > 0  # from a matrix product
    pace.note(large, 8, 2.0)
    assert pace.step(large) == 1.0
    assert 0.25 < pace.step(small) < 1.0
    assert pace.step(replace(large, batch_size=8)) == pytest.approx(2.0)


def test_rounds_fit_into_the_seconds():
    for step_s in (0.001, 0.1, 1, 10):
        for seconds in (1, 10, 100):
            plan = rounds_of(step_s, seconds)
            if plan:
                steps, repeats = plan
                assert steps * step_s * 2 * 4 / 3 * (repeats + 1) <= seconds
            else:
                assert seconds < 8 * step_s
    assert rounds_of(0.01, 100) == (64, 5)
    assert rounds_of(1, 9) == (1, 2)


def test_the_first_cases_are_the_most_telling():
    names = [(one.model, one.method, one.precision, one.batch_size) for one in cases()]
    assert len(set(names)) == len(names)
    assert set(names[:4]) == {
        (model, "lora", precision, 32)
        for model in ("ViT-Ti/16 at 224", "ViT-B/16 at 224")
        for precision in ("bfloat16", "float32")
    }
    assert {one[0] for one in names} == set(ARCHITECTURES)
    assert {one[1] for one in names} == {"lora", "lora_vpt", "full"}


def test_operations_of_the_architectures():
    """Against published numbers of multiplications and additions: 1.3, 17.6 and 61.6 GMACs at most (timm's tables)."""
    macs = {name: one.flops / 2e9 for name, one in ARCHITECTURES.items()}
    assert macs["ViT-Ti/16 at 224"] == pytest.approx(1.26, rel=0.05)
    assert macs["ViT-B/16 at 224"] == pytest.approx(17.6, rel=0.05)
    assert macs["ViT-L/16 at 224"] == pytest.approx(61.6, rel=0.05)


# Speed


@pytest.fixture
def few_steps(monkeypatch):
    """Rounds that take no time, however much there is."""
    monkeypatch.setattr(speed, "MOST_STEPS", 1)


@pytest.mark.parametrize("method", ["lora", "lora_vpt", "full"])
def test_both_loops_are_measured(method, tmp_path, few_steps):
    found = measure(case(method, "bfloat16"), Weights(tmp_path, CPU), CPU, Pace(CPU), 200.0)
    repeats = found["repeats"]
    for what in ("train", "evaluate"):
        one = found[what]
        assert len(one["seconds"]["bare"]) == len(one["seconds"]["ours"]) == repeats
        rates = one["images_per_s"]
        assert one["ours_over_bare"] == pytest.approx(rates["ours"] / rates["bare"])
        assert one["memory"]["ours"] == {"allocated": None, "reserved": None}  # a CPU's is not told apart


def test_a_case_whose_first_step_takes_too_long_is_left_out(tmp_path):
    with pytest.raises(NoTime, match=r"or more; 0 s were left"):
        measure(case(), Weights(tmp_path, CPU), CPU, Pace(CPU), 1e-6)


def test_the_smallest_case_may_take_all_that_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "rounds_of", lambda step_s, seconds: None)
    found = measure(case(), Weights(tmp_path, CPU), CPU, Pace(CPU), 200.0)
    assert (found["images"], found["repeats"]) == (found["batch_size"], 2)


def test_the_plain_loop_computes_what_ours_does(tmp_path):
    """The same tensors give the same logits, so that the loops do the same work."""
    one = case("lora_vpt")
    path, tensors = Weights(tmp_path, CPU).of(TINY)
    loop = PlainLoop(tensors, TINY.name, {"img_size": 32, **TINY.kwargs}, len(SPEED_CLASSES), CPU, rank=4, prompts=10)
    trainer = LocalTrainer(one.experiment("0" * 64, 8), path, CPU)
    state = loop.state()
    state = {key: value + 0.1 * torch.randn(value.shape) for key, value in state.items()}
    ours = {}
    for key, value in trainer.initial.items():
        if key.endswith(".prompts"):
            ours[key] = state["prompts"][int(key.split(".")[1])].numpy()
        else:
            (same,) = [name for name in state if name.replace(".default.weight", "") == key or name == key]
            ours[key] = state[same].numpy()
        assert ours[key].shape == value.shape
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    split = speed.ImageSplit(images, np.zeros(8, np.int64))
    expected = trainer.predict(ours, split)[0]
    found = loop.predict(state, torch.from_numpy(images), 4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_plain_loop_learns_and_moves_images_as_ours_does(tmp_path):
    tensors = Weights(tmp_path, CPU).of(TINY)[1]
    loop = PlainLoop(tensors, TINY.name, {"img_size": 32, **TINY.kwargs}, 2, CPU, rank=2)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    images[::2] //= 4
    labels, state, losses = torch.arange(16) % 2, loop.state(), []
    for _ in range(8):
        state, loss = loop.train(state, images, labels, 8)
        losses.append(loss)
    assert losses[-1] < losses[0]
    torch.manual_seed(0)
    one = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    views = {tuple(view(one, number).flatten().tolist()) for number in range(VIEWS)}
    assert {tuple(image.flatten().tolist()) for image in _moved(one.expand(200, -1, -1, -1))} == views


def test_loops_that_train_other_tensors_are_not_compared(tmp_path):
    def other(experiment, path, device):
        method = experiment.method.model_copy(update={"options": {"lora": {"rank": 2}}})
        return LocalTrainer(experiment.model_copy(update={"method": method}), path, device)

    with pytest.raises(RuntimeError, match="different numbers of parameters"):
        Loops(case(), Weights(tmp_path, CPU), CPU, lambda step_s: 1, other)


def test_memory_of_a_gpu_is_each_loops_own(tmp_path, monkeypatch):
    """With torch.cuda replaced: what was allocated before a loop was made does not count for it."""
    held = iter([100, 500])
    monkeypatch.setattr(speed, "free_memory", lambda: None)
    loops = object.__new__(Loops)
    loops._device, loops.peaks, loops.first = torch.device("cuda"), {}, {}
    for name, value in (
        ("memory_allocated", lambda: next(held)),
        ("memory_reserved", lambda: 0),
        ("empty_cache", lambda: None),
        ("reset_peak_memory_stats", lambda: None),
        ("max_memory_allocated", lambda: 700),
        ("max_memory_reserved", lambda: 900),
        ("synchronize", lambda device: None),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("bare", "ours"):
        loops._made(name, lambda: {"train": lambda: None, "evaluate": lambda: None})
    assert loops.peaks["bare"]["train"] == speed.Peak(600, 900)
    assert loops.peaks["ours"]["evaluate"] == speed.Peak(200, 900)


def test_a_lever_is_measured_beside_the_bare_loop(tmp_path, monkeypatch, few_steps):
    monkeypatch.setattr(levers, "LEVERS", {"nothing": LocalTrainer})
    (step,) = levers.lever_steps((case(),), Weights(tmp_path, CPU), CPU, Pace(CPU))
    assert step.least() > 60  # a compiler's work would else take the time of the sections after it
    found = step.run(200.0)
    assert found["lever"] == "nothing"
    assert found["train"]["ours_over_bare"] > 0


# Contract


def test_a_device_that_is_the_cpu_has_the_same_bits(tmp_path):
    found = contract.compare("lora", tmp_path / "tiny.safetensors", CPU)
    assert (found["relative"], found["again"], found["equal"]) == (0.0, 0.0, True)
    assert contract._ratio(1e-3, 10.0) == pytest.approx(1e-4)


def test_a_device_that_computes_something_else_is_found(tmp_path, monkeypatch):
    """Were the device's round another one, the distance would show it."""
    train = LocalTrainer.train
    calls = []

    def other(self, site, split, tensors, round_number, **options):
        calls.append(site)
        return train(self, site if len(calls) == 1 else f"{site}-{len(calls)}", split, tensors, round_number, **options)

    monkeypatch.setattr(LocalTrainer, "train", other)
    found = contract.compare("lora", tmp_path / "tiny.safetensors", CPU)
    assert not found["equal"]
    assert found["again"] > 0


def test_outcomes_of_the_tests_are_counted_when_they_were_killed():
    log = (
        "tests/model/test_contract.py::test_a[lora-cuda] PASSED [ 3%]\n"
        "tests/model/test_contract.py::test_a[vera-cuda] FAILED [ 6%]\n"
        "FAILED tests/model/test_contract.py::test_a[vera-cuda] - assert 1 == 2\n"
        "tests/model/test_contract.py::test_a[full-cuda] "
    )
    found = read_outcomes(log)
    assert found["tests"] == {"passed": 1, "failed": 1}
    assert len(found["failed_tests"]) == 1
    assert read_outcomes("no module\nnothing")["said"] == ["no module", "nothing"]


# Sites


def test_sites_train_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sites, "ROUNDS", 1)
    found = sites.measure(case("lora_vpt"), tmp_path, Weights(tmp_path, CPU), CPU, Pace(CPU), (1, 2), 200.0)
    assert [one["sites"] for one in found["sites"]] == [1, 2]
    assert all(one["images_per_s"] > 0 and one["memory_bytes"] > 0 for one in found["sites"])
    assert found["not_measured"] == []
    assert found["bytes_per_site"] == found["sites"][1]["memory_bytes"] - found["sites"][0]["memory_bytes"]
    with pytest.raises(NoTime):
        sites.measure(case(), tmp_path / "late", Weights(tmp_path, CPU), CPU, Pace(CPU), (1, 2), 1.0)


# Accuracy


@pytest.fixture
def source(tmp_path) -> accuracy.Source:
    """Twelve images of each site, some of each class."""
    import timm

    rows, generator = ["file,dx,lesion_id,site"], np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for index in range(140):
            name = f"{index}.png"
            with archive.open(name, "w") as file:
                pixels = generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
            rows.append(f"{name},{CLASSES[index % 7]},lesion-{index // 2},{accuracy.SITES[index // 35]}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    model = timm.create_model(TINY.name, num_classes=0, img_size=32, **TINY.kwargs)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = {"name": TINY.name, "kwargs": TINY.kwargs}
    return accuracy.Source(
        tmp_path / "images.zip",
        tmp_path / "metadata.csv",
        tmp_path / "weights.safetensors",
        tmp_path / "cache",
        32,
        backbone,
    )


@pytest.mark.parametrize("kind", ["head", "pooled", "federated"])
def test_cells_are_trained_and_evaluated_in_both_precisions(kind, source, tmp_path):
    method = "linear_probe" if kind == "head" else "lora_vpt"
    cell = accuracy.Cell(kind, method, "bfloat16", 1, rounds=0 if kind == "head" else 1)
    bench = accuracy.Bench(tmp_path / "bench", CPU, Pace(CPU), source)
    assert bench.least(cell) > 0
    found = bench.run(cell)
    assert 0 <= found["balanced_accuracy"] <= 1
    assert found["in_the_other_precision"]["precision"] == "float32"
    assert 0.8 <= found["in_the_other_precision"]["same_answers"] <= 1
    assert found["images"]["train"] > found["images"]["test"] > 0


def test_without_the_pack_there_are_no_cells(tmp_path):
    with pytest.raises(Skipped, match="the pack has it"):
        accuracy.Bench(tmp_path, CPU, Pace(CPU)).run(next(accuracy.cells()))


def test_precisions_are_compared_over_folds():
    def one(precision, fold, value, other):
        return {
            "section": "accuracy", "status": "done", "kind": "pooled", "method": "lora_vpt", "precision": precision,
            "fold": fold, "balanced_accuracy": value, "in_the_other_precision": {"balanced_accuracy": other},
        }  # fmt: skip

    records = [one("bfloat16", 1, 0.60, 0.61), one("float32", 1, 0.62, 0.60), one("bfloat16", 2, 0.64, 0.64)]
    (found,) = precision_pairs(records)
    assert (found["folds"], found["points"], found["standard_error"]) == (1, pytest.approx(-2), None)
    assert found["evaluated"] == pytest.approx((-1 - 2 + 0) / 3)
    (found,) = precision_pairs([*records, one("float32", 2, 0.64, 0.64)])
    assert (found["folds"], found["points"], found["standard_error"]) == (2, pytest.approx(-1), pytest.approx(1))


# Pack


def test_half_of_the_images_are_whole_lesions_of_every_kind():
    rows = [
        {"file": f"{index}", "lesion_id": f"l{index // 3}", "site": "ab"[index // 150], "dx": f"c{index // 3 % 2}"}
        for index in range(300)
    ]
    half = chosen(rows)
    assert half == chosen(list(rows))
    assert 150 <= len(half) <= 150 + 4 * 3
    inside, outside = ({row["lesion_id"] for row in rows if (row in half) is there} for there in (True, False))
    assert not inside & outside
    assert {(row["site"], row["dx"]) for row in half} == {(site, dx) for site in "ab" for dx in ("c0", "c1")}


def test_a_pack_that_is_too_large_is_refused(tmp_path, monkeypatch, capsys):
    def fill(folder: Path, pythons, more):
        (folder / "noise").write_bytes(os.urandom(2000))

    monkeypatch.setattr(pack, "fill", fill)
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    monkeypatch.setattr(pack.check_size, "__defaults__", (1000,))
    for name in ("pack.zip", "folder"):
        assert pack.main(["--out", str(tmp_path / name)]) == 1
        assert "would have 0.0 MB; at most 0 MB would be right" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(pack.check_size, "__defaults__", (10_000,))
    assert pack.main(["--out", str(tmp_path / "pack.zip")]) == 0
    assert zipfile.ZipFile(tmp_path / "pack.zip").namelist() == ["noise"]
    assert pack.main(["--out", str(tmp_path / "pack.zip")]) == 1
    assert "exists" in capsys.readouterr().err


# The command


BLOCKED = ("nvflare", "pt_peft_flare", "matplotlib", "distributed", "dask", "opacus", "tenseal")


def test_nothing_but_what_is_packed_is_imported(tmp_path):
    """With an import hook that refuses FLARE and the harness's own packages, and without git."""
    code = (
        "import sys, importlib.machinery\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {BLOCKED!r}:\n"
        "            return importlib.machinery.ModuleSpec(name, self)\n"
        "    def create_module(self, spec):\n"
        "        raise ModuleNotFoundError(f'blocked: {spec.name}', name=spec.name)\n"
        "    def exec_module(self, module): pass\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import benchmark.speed.device.__main__, benchmark.speed.device.run\n"
        "import pt_peft.data.augmentation, pt_peft.data.stored, pt_peft.worker.request_handler\n"
        "import torch; from benchmark.speed.device.machine import origin; print(origin(torch.device('cpu'))['commit'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environment, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"  # no git, and no pack that says the commit


def test_the_machine_is_described():
    found = origin(CPU)
    assert found["gpu"] is None
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert len(found["commit"]) == 40


def test_the_summary_says_what_was_wanted_and_what_is_a_cpus():
    def record(model, train, evaluate, memory):
        rates = {
            "images_per_s": {"bare": 100.0, "ours": 95.0},
            "memory": {"bare": {"allocated": 1e9}, "ours": {"allocated": 1.2e9}},
        }
        return {
            "section": "speed", "step": model, "status": "done", "model": model, "method": "lora",
            "precision": "float32", "batch_size": 32,
            "train": {**rates, "ours_over_bare": train, "memory_ours_over_bare": memory},
            "evaluate": {**rates, "ours_over_bare": evaluate, "memory_ours_over_bare": memory},
        }  # fmt: skip

    machine = {"section": "machine", "step": "machine", "status": "done", **origin(CPU)}
    text = summary([machine, record("a", 0.97, 1.02, 1.05), record("b", 0.90, 1.00, 1.2)])
    assert "These are a CPU's figures" in text
    assert "| ≥ 0.95 | 0.90 to 0.97 | 1 of 2 |" in text
    assert "| ≥ 1.0 | 1.00 to 1.02 | 2 of 2 |" in text
    assert "| ≤ 1.1 | 1.05 to 1.20 | 1 of 2 |" in text


def test_bad_options_are_told(tmp_path, capsys):
    from benchmark.speed.device.__main__ import main

    assert main(["--minutes", "0", "--out", str(tmp_path)]) == 1
    assert "--minutes: 0; above 0" in capsys.readouterr().err
    (tmp_path / FILE).write_text("")
    assert main(["--minutes", "1", "--out", str(tmp_path)]) == 1
    assert "has results already" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["--minutes", "1", "--out", str(tmp_path / "new"), "--device", "cuda"]) == 1
        assert "--device is 'cuda', but torch finds no GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unpacked_pack_runs_elsewhere(shared, tmp_path):
    """In a folder of its own, without the clone, git and FLARE, in the minutes that it may take."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert pack.main(["--out", str(tmp_path / "pack.zip"), "--python", version]) == 0
    assert (tmp_path / "pack.zip").stat().st_size <= pack.MOST_BYTES
    folder = tmp_path / "elsewhere"
    zipfile.ZipFile(tmp_path / "pack.zip").extractall(folder)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PT_PEFT", "PATH"))}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmark.speed.device", "--minutes", "3", "--out", "out", "--device", "cpu"],
        cwd=folder, env={**inherited, "PATH": "/nowhere"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started <= 180
    records = read(folder / "out")
    machine = records[0]
    assert machine["packed"]
    assert machine["commit"] == json.loads((folder / "packed.json").read_text())["commit"]
    assert any(one["section"] == "speed" and one["status"] == "done" for one in records)
    assert all("why" in one for one in records if one["status"] != "done")
