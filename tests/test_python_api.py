"""The names of `pt_peft` itself: imported late, a model that predicts, a method in one's own loop, records."""

import ast
import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import pt_peft
from benchmark.sweep.records import CellRecord
from benchmark.sweep.result_file import read
from helpers import ROOT, TINY_VIT, changed
from pt_peft.__main__ import main
from pt_peft.environment import own_code
from pt_peft.errors import UserError
from pt_peft.federation.reports import EvaluationReport, SplitMetrics, TrainingReport
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, save_adapter
from pt_peft_flare.run_record import FinishedRound, RunRecord

SUITE = ROOT / "benchmark" / "results" / "claims.jsonl"


# The names


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, pt_peft; assert set(pt_peft.API) <= set(dir(pt_peft)); "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'nvflare') if name in sys.modules]); "
        "pt_peft.Experiment, pt_peft.Results, pt_peft.load; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "pt_peft" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == pt_peft.API
    assert all(getattr(pt_peft, name).__name__ == name for name in pt_peft.API)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        pt_peft.lod  # type: ignore[attr-defined]  # noqa: B018


# A model that predicts


@pytest.fixture(scope="module")
def adapter(tiny, tiny_weights, tmp_path_factory):
    """An adapter of a multilabel task's model, with random tensors."""
    experiment = changed(
        tiny, method={"name": "lora", "options": {}}, data={"source": "site", "task": "multilabel", "augment": []}
    )
    model = build_model(experiment.model, tiny_weights)
    draw = np.random.default_rng(0)
    tensors = {key: (value + draw.normal(size=value.shape)).astype(np.float32) for key, value in model.state().items()}
    path = tmp_path_factory.mktemp("run") / "adapter.safetensors"
    save_adapter(path, tensors, adapter_header(experiment) | {"round": 2})
    return path


@pytest.fixture(scope="module")
def predictor(adapter, tiny_weights):
    return pt_peft.load(str(adapter), backbone=tiny_weights, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    made = {
        "a.png": draw.integers(0, 256, (40, 32, 3), np.uint8),
        "b.png": draw.integers(0, 256, (32, 70), np.uint8),
        "c.png": draw.integers(0, 256, (32, 32, 4), np.uint8),
        "d.png": draw.integers(0, 65536, (32, 48), np.uint16),
    }
    for name, array in made.items():
        Image.fromarray(array).save(folder / name)
    return [folder / name for name in made]


def test_it_predicts_what_the_command_does(adapter, predictor, files, tiny_weights, tmp_path):
    found = predictor.predict(files)
    assert found.classes == predictor.classes == ("a", "b", "c", "d")
    assert predictor.task == "multilabel"
    assert found.probabilities.shape == (4, 4)
    assert found.probabilities.dtype == np.float32
    out = tmp_path / "predictions.csv"
    given = ["--out", str(out), "--backbone", str(tiny_weights), "--device", "cpu"]
    assert main(["predict", str(adapter), *map(str, files), *given]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert found.predicted == tuple(row["prediction"] for row in rows)
    assert any("|" in one for one in found.predicted), "multilabel"
    assert np.abs(found.probabilities - [[float(row[f"p_{name}"]) for name in "abcd"] for row in rows]).max() <= 6e-7


def test_paths_images_and_arrays_are_alike(predictor, files):
    expected = predictor.predict(files).probabilities
    opened = [Image.open(path) for path in files]
    for images in ([str(path) for path in files], opened, [np.asarray(one) for one in opened], iter(files)):
        assert np.array_equal(predictor.predict(images).probabilities, expected)
    stacked = np.stack([np.asarray(Image.open(files[0]))] * 3)
    assert np.array_equal(predictor.predict(stacked).probabilities, expected[[0, 0, 0]])


def test_more_images_than_a_batch(predictor):
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
    together = predictor.predict(images).probabilities
    assert together.shape == (70, 4)
    assert np.allclose(together[-1:], predictor.predict(images[-1:]).probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", "'images' is one image; a list of images would be right"),
        (np.zeros((8, 8, 3), np.uint8), "'images' is one image"),
        ([], "has no image; at least one"),
        (["not_there.png"], r"predict: image 'not_there.png' does not exist\."),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], r"images\[1\] is a ndarray float64 \(8, 8, 3\)"),
        ([7], r"images\[0\] is a int"),
    ],
    ids=["path", "array", "none", "missing", "floats", "number"],
)
def test_mistakes_in_images_are_one_sentence(images, message, predictor):
    with pytest.raises(UserError, match=message):
        predictor.predict(images)


# A method in one's own loop


def vit(num_classes=3, name="vit_tiny_patch16_224"):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=32, num_classes=num_classes, **TINY_VIT)


@pytest.mark.parametrize("method", ["lora_vpt", "linear_probe", "ssf+dora", "sba", "vpt_shallow"])
def test_exactly_the_tensors_of_the_method_train(method, tiny, tiny_weights):
    plain = vit(num_classes=4)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    model = pt_peft.adapt(plain, method)
    assert isinstance(model, timm.models.VisionTransformer)
    state = pt_peft.trained_state(model)
    in_a_job = build_model(changed(tiny, method={"name": method, "options": {}}).model, tiny_weights)
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: tuple(value.shape) for key, value in in_a_job.trained.items()
    }
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    trained = [one for one in model.parameters() if one.requires_grad]
    assert all(one.grad is not None for one in trained)
    assert all(one.grad is None for one in model.parameters() if not one.requires_grad)
    torch.optim.SGD(trained, lr=1.0).step()
    assert any(not torch.equal(value, state[key]) for key, value in pt_peft.trained_state(model).items())
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items()), "the model is not changed"


def test_options_are_those_of_an_experiment():
    state = pt_peft.trained_state(pt_peft.adapt(vit(), "lora", lora={"rank": 2, "last_blocks": 1}))
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "blocks.1.attn.qkv.lora_A": (2, 32),
        "blocks.1.attn.qkv.lora_B": (96, 2),
        "head.bias": (3,),
        "head.weight": (3, 32),
    }


def test_a_state_goes_out_and_in():
    images = torch.randn(2, 3, 32, 32)
    first, second = (pt_peft.adapt(vit(), "lora_vpt").eval() for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    assert not torch.allclose(first(images), second(images))
    pt_peft.load_trained_state(second, pt_peft.trained_state(first))
    assert torch.equal(first(images), second(images))


def test_the_dry_run_draws_nothing():
    """What is drawn are the method's tensors alone, so that a loop after it repeats."""
    torch.manual_seed(1)
    pt_peft.adapt(vit(), "linear_probe")
    torch.manual_seed(1)
    expected = (vit(), torch.rand(1))[1]
    torch.manual_seed(1)
    assert torch.equal((pt_peft.adapt(vit(), "linear_probe"), torch.rand(1))[1], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pt_peft.adapt(torch.nn.Linear(2, 2), "lora"), "the model is a Linear, which is not a plain Vision"),
        (lambda: pt_peft.adapt(vit(num_classes=0), "lora"), "one linear head"),
        (lambda: pt_peft.adapt(vit(), "lorra"), "is 'lorra', which is unknown"),
        (lambda: pt_peft.adapt(vit(), "lora", lora={"rnk": 2}), "'rnk' is unknown; did you mean 'rank'"),
        (lambda: pt_peft.adapt(vit(), "lora", lora={"targets": ["nothing"]}), "targets"),
        (lambda: pt_peft.load_trained_state(vit(), {}), "lacks a tensor that trains, 'blocks.0"),
        (
            lambda: pt_peft.load_trained_state(
                pt_peft.adapt(vit(), "linear_probe"), {"head.bias": torch.zeros(4), "head.weight": torch.zeros(3, 32)}
            ),
            r"'head.bias' has shape \(4,\); \(3,\) would be right",
        ),
    ],
    ids=["no ViT", "no head", "method", "option", "value", "missing", "shape"],
)
def test_mistakes_in_adapting_are_one_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()


# Records


def scores(count: int, share: float) -> SplitMetrics:
    shares = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"), share)
    confusion = [[count, 0, 0, 0], *([0] * 4 for _ in range(3))]
    return SplitMetrics(count=count, loss=1.0, class_auroc=[None] * 4, confusion=confusion, **shares)


@pytest.fixture
def run(tiny, tmp_path):
    """A simulator's workspace after one round of two sites."""
    folder = tmp_path / "workspace" / "server" / "simulate_job"
    folder.mkdir(parents=True)
    sites = {"site-1": 0.25, "site-2": 0.75}
    record = RunRecord(folder, tiny, "simulate_job", [*sites], {}, 0)
    reports = {
        site: TrainingReport(num_samples=64, train_loss=share, seconds=1.5, val=scores(8, share), code=own_code())
        for site, share in sites.items()
    }
    record.add_round(
        FinishedRound(
            0, reports, {}, dict.fromkeys(sites, 1), {"site-1": 2, "site-2": 3}, dict.fromkeys(sites, "0"), {}, 2.0, {}
        )
    )
    final = {
        site: EvaluationReport(
            val=None, test=scores(4, share), own_val=None, own_test=None, seconds=1.0, code=own_code()
        )
        for site, share in sites.items()
    }
    record.add_final(final, {})
    record.close("finished")
    return tmp_path / "workspace"


def test_the_records_of_a_run(run):
    results = pt_peft.Results.read(run)
    found = {(one["rounds"], one["split"], one["of"]): one["accuracy"] for one in results.metrics}
    assert found == {
        (0, "val", "site-1"): 0.25,
        (0, "val", "site-2"): 0.75,
        (0, "val", "mean"): 0.5,
        (0, "val", "pooled"): 1.0,
        (1, "test", "site-1"): 0.25,
        (1, "test", "site-2"): 0.75,
        (1, "test", "mean"): 0.5,
        (1, "test", "pooled"): 1.0,
    }
    told = [(one["round"], one["site"], one["train_loss"], one["bytes_out"]) for one in results.training]
    assert told == [(0, "site-1", 0.25, 2), (0, "site-2", 0.75, 3)]
    assert all(isinstance(value, str | int | float | None) for one in results.metrics for value in one.values())
    file = run / "server" / "simulate_job" / "metrics.json"
    assert pt_peft.Results.read(str(file)) == results


def test_the_records_of_a_suite():
    """As the harness reads them."""
    results = pt_peft.Results.read(SUITE)
    cells = {one.name: one for one in read(SUITE).runs.values() if isinstance(one, CellRecord)}
    assert cells
    for name, cell in cells.items():
        of_cell = [one for one in results.metrics if one["name"] == name]
        (pooled,) = [one for one in of_cell if (one["split"], one["of"]) == ("test", "pooled")]
        assert pooled["balanced_accuracy"] == cell.final.test.pooled.balanced_accuracy
        assert (pooled["method"], pooled["seed"], pooled["rounds"]) == (
            cell.axes.method,
            cell.axes.seed,
            len(cell.rounds),
        )
        started = [one for one in of_cell if (one["split"], one["of"]) == ("val", "mean")]
        assert [one["rounds"] for one in started] == list(range(len(cell.rounds) + 1))
        assert sum(one["name"] == name for one in results.training) == sum(len(one.sites) for one in cell.rounds)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.json", "{}", "holds no results of a run or suite"),
        ("other.jsonl", json.dumps({"kind": "cell"}) + "\n", "holds no results of a run or suite"),
        ("broken.json", "{", "is not valid JSON"),
    ],
)
def test_what_has_no_results_is_one_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        pt_peft.Results.read(tmp_path / name)
    with pytest.raises(UserError, match=r"it has no metrics\.json"):
        pt_peft.Results.read(tmp_path)
