"""The model card: what header and record say, in words and for the Hugging Face Hub; what nobody said is not known."""

import json
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from scipy.stats import binomtest

from helpers import changed
from pt_peft.__main__ import main
from pt_peft.errors import UserError
from pt_peft.export.formats import export
from pt_peft.export.model_card import Told, model_card, wilson
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, save_adapter

SITES = {
    "clinic": {"confusion": [[5, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], "ece": 0.25, "auroc": None},
    "ward": {"confusion": [[2, 0, 0, 0], [0, 2, 0, 0], [1, 0, 0, 1], [0, 0, 0, 4]], "ece": 0.125, "auroc": 0.75},
}


def metrics(confusion, **more):
    counts = np.array(confusion)
    accuracy = counts.trace() / counts.sum()
    return {
        "count": int(counts.sum()), "accuracy": accuracy, "balanced_accuracy": accuracy / 2, "macro_f1": 0.5,
        "confusion": confusion, **more,
    }  # fmt: skip


@pytest.fixture
def run(tiny, tiny_weights, tmp_path):
    """A function that writes an adapter and its run's record, and returns the adapter's path."""

    def make(record=None, header=None, **changes):
        experiment = changed(tiny, **{"method": {"name": "lora", "options": {}}, **changes})
        reports = {site: {"val": None, "test": metrics(**values)} for site, values in SITES.items()}
        both = np.sum([values["confusion"] for values in SITES.values()], axis=0).tolist()
        mean = {"accuracy": 0.8, "balanced_accuracy": 0.4, "macro_f1": 0.5, "auroc": 0.75, "ece": 0.1875}
        summary = {"val": None, "test": {"mean": mean, "pooled": metrics(both)}}
        content = {
            "experiment": experiment.model_dump(mode="json"),
            "code": {"version": "0.2.0", "source": "0123456789abcdef", "method": "fedcba9876543210"},
            "exchanged": {"tensors": 2, "parameters": 1234, "bytes": 4936},
            "statistics": [],
            "rounds": [{"sites": {"clinic": {"num_samples": 70}, "ward": {"num_samples": 80}}}],
            "final": {"sites": reports, "left_out": {}, **summary},
            **(record or {}),
        }
        path = tmp_path / "adapter.safetensors"
        said = {"round": 2, "metrics": summary, **(header or {})}
        save_adapter(path, build_model(experiment.model, tiny_weights).state(), adapter_header(experiment) | said)
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        return path

    return make


@pytest.mark.parametrize(("hits", "count"), [(7, 10), (0, 5), (5, 5), (731, 2000)])
def test_the_interval_is_wilsons(hits, count):
    right = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((right.low, right.high), abs=1e-7)


def test_what_the_run_says(run):
    card = model_card(run(), "timm", Told())
    for line in (
        "| clinic | 10 | 0.800 [0.490, 0.943] | 0.400 | 0.500 | - | 0.250 |",
        "| ward | 10 | 0.800 [0.490, 0.943] | 0.400 | 0.500 | 0.750 | 0.125 |",
        "| worst of the sites |  | 0.800 | 0.400 | 0.500 | 0.750 | 0.250 |",
        "| all images together | 20 | 0.800 [0.584, 0.919] | 0.400 | 0.500 | - | - |",
        "| mean over sites |  | 0.800 | 0.400 | 0.500 | 0.750 | 0.188 |",
        "The images were drawn by a program and show nobody; the model is of no use for real ones. 2 sites took part.",
        "| clinic | 70 | - | 10 |",
        "* Differential privacy: none.",
        "* Encryption of what sites sent: none but the connection's",
        "| published as | not known, and neither is its licence |",
        "| server's code | pt-peft 0.2.0, source `0123456789abcdef`, methods `fedcba9876543210` |",
        "| licence of this model | not told |",
        "| 3 | d |",
    ):
        assert line in card, line


def test_what_was_spent(run, tiny):
    privacy: dict[str, Any] = {
        "sample": {"noise_multiplier": 0.7, "max_grad_norm": 1.0, "delta": 1e-05, "epsilon": 3.25}
    }
    claim = {"header": {"privacy": {**privacy, "statistics": None, "client": None}}}
    line = "* Differential privacy of each training image (DP-SGD): ε = 3.25, δ = 1e-05, noise multiplier 0.7."
    assert line in model_card(run(**claim), "timm", Told())
    privacy["sample"]["epsilon"] = None
    assert "(DP-SGD): no ε, as the noise was not secret, δ" in model_card(run(**claim), "timm", Told())


def test_encryption(run):
    card = model_card(run(encryption={"scheme": "ckks"}, aggregation={"weighting": "samples"}), "timm", Told())
    assert "* Encryption of what sites sent: CKKS; the server could not read it." in card


def test_what_nobody_says(run):
    """Without a record, or with that of another run, or for another aggregate of the run."""
    path = run()
    (path.parent / "metrics.json").unlink()
    card = model_card(path, "timm", Told())
    assert "Not known: there was no `metrics.json` of the run beside its adapter." in card
    assert "| all images together | 20 |" in card
    assert "Encryption of what sites sent: not known" in card
    assert "clinic" not in card
    card = model_card(run(record={"experiment": {"name": "another"}}), "timm", Told())
    assert "clinic" not in card
    best = {"metrics": {"val": {"mean": {"accuracy": 0.5}, "pooled": metrics([[1, 1], [0, 0]])}}}
    card = model_card(run(header=best), "timm", Told())
    assert "| clinic | 10" not in card
    assert "| clinic | 70 | - | - |" in card
    assert "On the sites' validation images." in card
    card = model_card(run(header={"metrics": {}}), "timm", Told())
    assert "Not known: the adapter's header has no metrics." in card
    assert "model-index" not in card


def test_a_record_of_another_kind_is_refused(run, tiny_weights, tmp_path, capsys):
    path = run(record={"code": "abc"})
    arguments = ["export", str(path), "--format", "timm", "--backbone", str(tiny_weights)]
    assert main([*arguments, "--out", str(tmp_path / "timm")]) == 1
    assert "adapter.safetensors: is not as this version writes it" in capsys.readouterr().err
    assert not (tmp_path / "timm").exists()


def test_words_of_others_are_no_markup(run, tiny):
    """Neither of classes and sites nor of a header that somebody made."""
    names = ["<img src=x onerror=alert(1)>", "[free](javascript:alert(1))", "a|b_c `d`", "_e_"]
    header = {"experiment": "x\n---\nlicense: mit\n\n# Approved <script>", "version": "1\r\n", "metrics": {}}
    path = run(header=header, data={"classes": names})
    (path.parent / "metrics.json").unlink()
    card = model_card(path, "timm", Told())
    for line in (
        "# x --- license: mit  # Approved \\<script\\>",
        "| 0 | \\<img src=x onerror=alert(1)\\> |",
        "| 1 | \\[free\\](javascript:alert(1)) |",
        "| 2 | a\\|b_c \\`d\\` |",
        "| 3 | \\_e\\_ |",
        "| code | pt-peft 1   |",
    ):
        assert line in card.split("\n"), line
    assert ModelCard(card).data.to_dict()["license"] == "unknown"


@pytest.mark.parametrize(
    ("record", "header", "message"),
    [
        ([], {}, "metrics.json: is no metrics.json; the run's own, or none, would be right"),
        (None, {"metrics": None}, "adapter.safetensors: its header is not as this version writes it"),
        *(
            (None, {"metrics": {"test": {"mean": {}, "pooled": {"count": 0, "confusion": confusion}}}}, "its header is")
            for confusion in ([[0]], [[10**30]], [[1], [1, 2]], [[-5, 0], [2, 0]])
        ),
    ],
)
def test_damage_is_one_sentence(record, header, message, run):
    path = run(header=header)
    (path.parent / "metrics.json").unlink()
    if record is not None:
        (path.parent / "metrics.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        model_card(path, "timm", Told())


def test_the_hub_reads_it(run, tiny_weights, tmp_path, capsys):
    told = ["--base-model", "timm/vit_tiny_patch16_224.augreg_in21k", "--license", "cc-by-nc-4.0"]
    path = run()
    for name, library, relation in (("peft", "peft", "adapter"), ("timm", "timm", "finetune")):
        out = tmp_path / name
        arguments = ["export", str(path), "--format", name, "--out", str(out), "--backbone", str(tiny_weights)]
        assert main([*arguments, *told]) == 0
        data = ModelCard.load(out / "README.md").data.to_dict()
        (index,) = data.pop("model-index")
        assert data == {
            "library_name": library,
            "license": "cc-by-nc-4.0",
            "pipeline_tag": "image-classification",
            "base_model": told[1],
            "base_model_relation": relation,
            "tags": ["federated-learning", "medical", "pt-peft", "lora"],
        }
        values = {one["type"]: one["value"] for one in index["results"][0]["metrics"]}
        assert values == {"accuracy": 0.8, "balanced_accuracy": 0.4, "macro_f1": 0.5, "auroc": 0.75, "ece": 0.1875}
        weights = next(out.glob("*model.safetensors"))
        with safe_open(weights, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == told[1]
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("vit_tiny_patch16_224", 4)
    assert config["label_names"] == ["a", "b", "c", "d"]
    assert config["pretrained_cfg"].items() >= {
        "input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 1.0,
        "interpolation": "bicubic", "crop_mode": "border", "num_classes": 4,
    }.items()  # fmt: skip
    out = tmp_path / "a.onnx"
    assert (
        main(["export", str(path), "--format", "onnx", "--out", str(out), "--backbone", str(tiny_weights), *told]) == 1
    )
    assert (
        "--format onnx is one file without a model card; peft, timm, monai_bundle have one" in capsys.readouterr().err
    )


def test_the_licence_is_unknown_until_it_is_told(run, tiny_weights, tmp_path):
    export(run(), "monai_bundle", tmp_path / "bundle", tiny_weights)
    data = ModelCard.load(tmp_path / "bundle" / "README.md").data.to_dict()
    assert (data["library_name"], data["license"]) == ("monai", "unknown")
    assert "base_model" not in data


def test_how_frequent_the_classes_are(run):
    counts = {"split": "val", "images": 1250, "counts": [1000, 200, 50, 0]}
    card = model_card(run(header={"class_counts": counts}, training={"imbalance": "balanced_softmax"}), "timm", Told())
    assert "| output | class | of 1,250 validation images of all sites |" in card
    assert "| 0 | a | 1,000 |" in card
    assert "Its probabilities are for equally frequent classes" in card
    plain = model_card(run(), "timm", Told())
    assert "| 0 | a |\n" in plain
    assert "as frequent as in the sites' training images. `pt-peft predict --prior` moves them" in plain
