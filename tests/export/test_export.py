"""What goes home: every format against the adapter it comes from, and the commands that write and read them."""

import csv
import json
import resource
import warnings
import zipfile

import numpy as np
import peft
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers.mlp import SwiGLUPacked
from transformers import AutoModelForImageClassification

from helpers import changed
from pt_peft.__main__ import main
from pt_peft.commands.methods import list_methods
from pt_peft.files import sha256_of
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter
from pt_peft.model.backbone import create_backbone
from pt_peft.model.method import method_names

FORMATS = ("adapter", "peft", "timm", "onnx", "monai_bundle")
OUT = {"adapter": "a.safetensors", "peft": "peft", "timm": "timm", "onnx": "a.onnx", "monai_bundle": "bundle"}


@pytest.fixture
def trained(tiny, tiny_weights, tmp_path):
    """A function that writes an adapter with random tensors, as a run leaves it, and returns the run and its model."""

    def make(method, head="exchanged", **options):
        experiment = changed(tiny, method={"name": method, "options": options, "head": head})
        model = build_model(experiment.model, tiny_weights)
        generator = np.random.default_rng(0)
        noise = {key: generator.normal(size=value.shape, scale=0.1) for key, value in model.state().items()}
        state = {key: (value + noise[key]).astype(np.float32) for key, value in model.state().items()}
        changed_keys = model.exchange(2).down(0, 2).keys()
        model.load({key: value for key, value in state.items() if key in changed_keys})
        run = tmp_path / "run"
        sent = {key: value for key, value in model.state().items() if key in changed_keys}
        save_adapter(
            run / "server" / "simulate_job" / "adapter.safetensors", sent, adapter_header(experiment) | {"round": 2}
        )
        return run, model

    return make


@pytest.fixture
def images(tmp_path):
    """A folder of images of several kinds."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (40, 32)), ("b.jpg", (32, 64)), ("deeper/c.png", (32, 32))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def export(run, name, out, weights):
    return main(["export", str(run), "--format", name, "--out", str(out), "--backbone", str(weights)])


def predict(adapter, images, out, *more):
    assert main(["predict", str(adapter), str(images), "--out", str(out), "--device", "cpu", *map(str, more)]) == 0
    with out.open() as file:
        return list(csv.DictReader(file))


def test_every_format_gives_the_same_predictions(trained, tiny_weights, images, tmp_path):
    run, _model = trained("lora", lora={"targets": ["qkv", "fc1"]})
    expected = predict(run, images, tmp_path / "run.csv", "--backbone", tiny_weights)
    assert [row["file"].removeprefix(f"{images}/") for row in expected] == ["a.png", "b.jpg", "deeper/c.png"]
    for row in expected:
        shares = {name: float(row[f"p_{name}"]) for name in "abcd"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(shares, key=shares.__getitem__)
    for name in FORMATS:
        assert export(run, name, tmp_path / OUT[name], tiny_weights) == 0
        # A merged model and ONNX need no backbone.
        weights = () if name in ("timm", "onnx", "monai_bundle") else ("--backbone", tiny_weights)
        rows = predict(tmp_path / OUT[name], images, tmp_path / f"{name}.csv", *weights)
        for row, wanted in zip(rows, expected, strict=True):
            assert row["file"] == wanted["file"]
            assert all(float(row[f"p_{c}"]) == pytest.approx(float(wanted[f"p_{c}"]), abs=1e-4) for c in "abcd")


@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_parts": ["q", "v"], "targets": ["qkv", "proj"], "last_blocks": 1, "rank": 3}],
    ids=["fused", "parts"],
)
def test_the_peft_folder_on_a_plain_timm_model(options, trained, tiny, tiny_weights, tmp_path):
    """Loaded by HF peft as its users would, with nothing of ours."""
    run, model = trained("lora", lora=options)
    assert export(run, "peft", tmp_path / "peft", tiny_weights) == 0
    plain = timm.create_model(tiny.backbone.name, img_size=32, num_classes=4, **tiny.backbone.kwargs)
    plain.load_state_dict(load_file(tiny_weights), strict=False)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(batch), model.module.eval()(batch), atol=1e-6)


def test_the_timm_folder_is_timms_own(trained, tiny_weights, tmp_path):
    run, model = trained("ssf+dora")
    assert export(run, "timm", tmp_path / "timm", tiny_weights) == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(batch), model.module.eval()(batch), atol=1e-5)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["label_names"] == ["a", "b", "c", "d"]
    assert not config["pretrained_cfg"].keys() & {"tag", "license"}, "those of weights that timm publishes"
    transformed = AutoModelForImageClassification.from_pretrained(tmp_path / "timm").eval()
    assert transformed.config.id2label[1] == "b"
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(transformed(images).logits, theirs(images))


def test_the_timm_folder_of_a_swiglu(tiny, tmp_path):
    """timm's JSON cannot name the class: it is given as for the published model."""
    kwargs = {**tiny.backbone.kwargs, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    weights = tmp_path / "w.safetensors"
    experiment = changed(tiny, backbone={"kwargs": kwargs}, method={"name": "lora", "options": {}})
    save_file(create_backbone(experiment.backbone, 4, None).state_dict(), weights)
    experiment = changed(experiment, backbone={"sha256": sha256_of(weights)})
    model = build_model(experiment.model, weights)
    save_adapter(tmp_path / "a.safetensors", model.state(), adapter_header(experiment) | {"round": 2})
    assert export(tmp_path / "a.safetensors", "timm", tmp_path / "timm", weights) == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, mlp_layer=SwiGLUPacked).eval()
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(batch), model.module.eval()(batch), atol=1e-5)


def test_an_adapter_of_drawn_blocks_alone(trained, tiny, tiny_weights, tmp_path):
    """What stochastic block attention never drew is the backbone's."""
    run, model = trained("sba")
    tensors, _ = load_adapter(run / "server" / "simulate_job" / "adapter.safetensors")
    undrawn = {key for key in model.trained if key not in tensors}
    rounds = model.exchange(2).rotating
    assert (len(undrawn) == 4) == (rounds[0] == rounds[1])
    assert export(run, "timm", tmp_path / "timm", tiny_weights) == 0
    merged = load_file(tmp_path / "timm" / "model.safetensors")
    plain = create_backbone(tiny.backbone, 4, tiny_weights).state_dict()
    assert all(torch.equal(merged[key], plain[key]) for key in undrawn)
    assert all(np.array_equal(merged[key].numpy(), value) for key, value in tensors.items())


@pytest.mark.parametrize("name", method_names())
def test_every_method_goes_home_or_says_why(name, trained, tiny_weights, tmp_path, capsys):
    run, _ = trained(name)
    for format_name, reason in (("adapter", None), ("peft", "tuner of HF peft"), ("timm", "cannot be merged")):
        code = export(run, format_name, tmp_path / OUT[format_name], tiny_weights)
        error = capsys.readouterr().err
        assert (code == 0) == (tmp_path / OUT[format_name]).exists()
        assert code == 0 or (reason and reason in error), error
    assert not list(tmp_path.glob(".*")), "something half-written was left"


@pytest.mark.parametrize("name", ["lora_vpt", "adaptformer+pixel_prompt", "oft"])
def test_onnx_of_what_cannot_be_merged_too(name, trained, tiny_weights, tmp_path):
    run, model = trained(name)
    assert export(run, "onnx", tmp_path / "a.onnx", tiny_weights) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        batch = np.random.default_rng(0).random((count, 3, 32, 32), dtype=np.float32)
        with torch.no_grad():
            expected = model.module.eval()((torch.from_numpy(batch) - 0.5) / 0.5).numpy()
        assert np.abs(session.run(["logits"], {"images": batch})[0] - expected).max() <= 1e-4


def test_export_refuses(trained, tiny, tiny_weights, tmp_path, capsys):
    run, _model = trained("lora")

    def refusal(*arguments):
        assert main([*map(str, arguments)]) == 1
        return capsys.readouterr().err

    base = ("export", run, "--format", "adapter", "--out", tmp_path / "out")
    assert "the weights of 'vit_tiny_patch16_224' with SHA-256" in refusal(*base)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"something else")
    assert "but the experiment needs" in refusal(*base, "--backbone", other)
    assert "is not a file" in refusal(*base, "--backbone", tmp_path / "nowhere")
    assert "neither an adapter file nor a run" in refusal("export", tmp_path / "nowhere", *base[2:])
    (tmp_path / "out").mkdir()
    assert "exists already" in refusal(*base, "--backbone", tiny_weights)
    assert "is not a folder" in refusal(*base[:-1], tmp_path / "no" / "out", "--backbone", tiny_weights)

    path = run / "server" / "simulate_job" / "adapter.safetensors"
    tensors, header = load_adapter(path)
    for broken, sentence in (
        ({**tensors, "image": np.zeros(3, np.float32)}, "not allowed: 'image'"),
        ({key: value for key, value in tensors.items() if key != "head.bias"}, "missing: 'head.bias'"),
        ({**tensors, "head.bias": np.zeros(9, np.float32)}, "'head.bias' has shape (9,), not (4,)"),
    ):
        save_adapter(path, broken, header)
        assert sentence in refusal(*base[:-1], tmp_path / "x", "--backbone", tiny_weights)
    save_adapter(path, tensors, {"round": 3})
    assert "has no field 'model'" in refusal(*base[:-1], tmp_path / "x", "--backbone", tiny_weights)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_is_one_sentence(name, trained, tiny_weights, tmp_path, capsys):
    run, _model = trained("lora", lora={"targets": ["qkv"]})
    before, (_, most) = sorted(tmp_path.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        assert export(run, name, tmp_path / OUT[name], tiny_weights) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    said = capsys.readouterr().err
    assert said.startswith(f"error: --out: {tmp_path / OUT[name]} cannot be written (")
    assert "File too large" in said
    assert sorted(tmp_path.iterdir()) == before


def test_a_local_head_is_asked_for_at_its_site(trained, tiny_weights, tmp_path, capsys):
    run, _ = trained("lora", head="local")
    assert export(run, "adapter", tmp_path / "out", tiny_weights) == 1
    assert "a site's own model is local_adapter.safetensors" in capsys.readouterr().err


def test_a_frozen_head_comes_back_from_the_seed(trained, tiny_weights, tmp_path):
    run, model = trained("lora", head="frozen")
    assert export(run, "timm", tmp_path / "timm", tiny_weights) == 0
    assert torch.equal(load_file(tmp_path / "timm" / "model.safetensors")["head.weight"], model.module.head.weight)


def test_predict_refuses(trained, tiny_weights, images, tmp_path, capsys):
    run, _ = trained("linear_probe")
    out = tmp_path / "p.csv"
    base = ["predict", str(run), str(images), "--out", str(out), "--backbone", str(tiny_weights)]
    (images / "broken.png").write_bytes(b"no image")
    assert main(base) == 1
    assert "'" + str(images / "broken.png") + "' cannot be decoded" in capsys.readouterr().err
    assert not out.exists()
    assert main([*base, "--skip-unreadable"]) == 0
    assert "3 images, 1 left out" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 4
    assert main(["predict", str(run), str(tmp_path / "nowhere"), *base[3:]]) == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(run), str(tmp_path / "empty"), *base[3:]]) == 1
    assert "has no images" in capsys.readouterr().err
    assert main(base) == 1
    assert f"--out: {out} exists already" in capsys.readouterr().err
    out.unlink()
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    assert main(["predict", str(tmp_path / "bad.onnx"), *base[2:]]) == 1
    assert "is not an ONNX file of this project" in capsys.readouterr().err


def test_predict_says_what_it_does_not_take(trained, tiny_weights, images, tmp_path, capsys):
    run, _ = trained("linear_probe")
    (images / "a.png").rename(images / "IM0001")
    rows = predict(run, images, tmp_path / "folder.csv", "--backbone", tiny_weights)
    assert [row["file"] for row in rows] == [str(images / name) for name in ("IM0001", "b.jpg", "deeper/c.png")]
    warning = (
        f"warning: {images}: 1 of 4 files are not taken: they are no images by name or content (first: 'notes.txt').\n"
    )
    assert warning in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for file in ("IM0001", "b.jpg", "deeper/c.png", "notes.txt"):
            archive.write(images / file, file.replace("/", "\\"))
    zipped = predict(run, tmp_path / "i.zip", tmp_path / "zip.csv", "--backbone", tiny_weights)
    assert [row.pop("file") for row in zipped][2] == str(tmp_path / "i.zip" / "deeper\\c.png")
    assert zipped == [{name: value for name, value in row.items() if name != "file"} for row in rows]
    (images / "gone.png").symlink_to("/not/mounted/gone.png")
    assert (
        main(["predict", str(run), str(images), "--out", str(tmp_path / "p.csv"), "--backbone", str(tiny_weights)]) == 1
    )
    assert "1 of 5 files are not taken: they are links to what is not there" in capsys.readouterr().err


def test_predict_of_files_of_several_frames(trained, tiny_weights, images, tmp_path, capsys):
    run, _ = trained("linear_probe")
    generator = np.random.default_rng(3)
    pages = [Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8)) for _ in range(2)]
    pages[0].save(images / "pages.tif", save_all=True, append_images=pages[1:])
    alone = tmp_path / "second.png"
    pages[1].save(alone)
    weights = ("--backbone", tiny_weights)
    base = ["predict", str(run), str(images), "--out", str(tmp_path / "p.csv"), *map(str, weights)]
    assert main(base) == 1
    assert "has 2 frames or pages; data.frames in site.json (--frames of predict) says which" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*base, "--frames", "second"])
    assert "'second' is neither a number nor 'all'" in capsys.readouterr().err
    (expected,) = predict(run, alone, tmp_path / "alone.csv", *weights)
    (one,) = predict(run, images / "pages.tif", tmp_path / "one.csv", *weights, "--frames", 1)
    assert one["p_a"] == expected["p_a"]
    rows = predict(run, images, tmp_path / "all.csv", *weights, "--frames", "all")
    assert [row["file"].removeprefix(f"{images}/") for row in rows] == [
        "a.png#0",
        "b.jpg#0",
        "deeper/c.png#0",
        "pages.tif#0",
        "pages.tif#1",
    ]
    assert rows[-1]["p_a"] == expected["p_a"]


def test_methods_are_listed(capsys):
    assert main(["methods", "--backbone", "vit_tiny_patch16_224", "--classes", "7", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == set(method_names())
    assert not any("reason" in row for row in rows.values())
    assert rows["vpt_deep"]["parameters"] == 12 * 10 * 192
    assert rows["vpt_deep"]["head_parameters"] == 7 * 192 + 7
    assert rows["vpt_deep"]["bytes_a_round"] == 4 * (12 * 10 * 192 + 7 * 192 + 7)
    assert main(["methods", "--backbone", "vit_tinny"]) == 1
    assert "'vit_tinny' is no architecture that timm knows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_that_does_not_apply_is_listed_with_the_reason():
    rows = {row["method"]: row for row in list_methods("beit_base_patch16_224", None, 2)}
    assert "relative position bias" in rows["vpt_deep"].get("reason", "")
    assert rows["lora"].get("parameters") == 147_456


def edited(path, keep):
    """Rewrites a safetensors file of torch with the tensors for which `keep` gives one."""
    from safetensors.torch import save_file

    tensors = {key: keep(key, value) for key, value in load_file(path).items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "lora_B missing",
            "are not of one adapter (base_model.model.blocks.0.attn.qkv.lora_B.weight is missing or left over)",
        ),
        ("one block", "are not of one adapter (base_model.model.blocks."),
        ("truncated", "cannot be loaded by peft (SafetensorError"),
        ("nan", "gives values that are not finite"),
    ],
)
def test_a_damaged_peft_folder_is_refused(trained, tiny_weights, images, tmp_path, capsys, damage, message):
    run, _ = trained("lora")
    folder = tmp_path / "peft"
    assert export(run, "peft", folder, tiny_weights) == 0
    weights = folder / "adapter_model.safetensors"
    if damage == "lora_B missing":
        edited(weights, lambda key, value: None if "blocks.0" in key and "lora_B" in key else value)
    elif damage == "one block":
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = ["blocks.1.attn.qkv"]
        (folder / "adapter_config.json").write_text(json.dumps(config))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        edited(weights, lambda key, value: value * float("nan"))
    arguments = ["predict", str(folder), str(images), "--out", str(tmp_path / "p.csv"), "--backbone", str(tiny_weights)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of missing tensors
        assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("method", ["sba", "lora+sba"])
def test_an_adapter_that_lacks_what_its_rounds_drew_is_refused(trained, tiny_weights, tmp_path, capsys, method):
    run, _model = trained(method)
    path = run / "server" / "simulate_job" / "adapter.safetensors"
    tensors, header = load_adapter(path)
    assert export(run, "adapter", tmp_path / "whole.safetensors", tiny_weights) == 0
    for lost in (key for key in tensors if "attn" in key):
        save_adapter(path, {key: value for key, value in tensors.items() if key != lost}, header)
        assert export(run, "adapter", tmp_path / "out.safetensors", tiny_weights) == 1
        assert f"'{lost}'" in capsys.readouterr().err
        assert not (tmp_path / "out.safetensors").exists()


def test_large_logits_are_compared_by_their_size(trained, tiny_weights, tmp_path):
    run, _model = trained("lora")
    path = run / "server" / "simulate_job" / "adapter.safetensors"
    tensors, header = load_adapter(path)
    save_adapter(path, {key: value * (300 if key.startswith("head") else 1) for key, value in tensors.items()}, header)
    assert export(run, "timm", tmp_path / "timm", tiny_weights) == 0
