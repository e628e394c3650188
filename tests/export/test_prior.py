"""To which prevalence probabilities are moved: from the header and what is asked for, or one sentence."""

import csv
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pt_peft
from helpers import changed
from pt_peft.__main__ import main
from pt_peft.errors import UserError
from pt_peft.experiment.prevalence import ClassCounts, KnownPrevalence
from pt_peft.export.formats import FORMATS, export
from pt_peft.export.prevalence import move_to
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter

COUNTS = {"split": "train", "images": 100, "counts": [70, 20, 10, 0]}
WARD = {"a": 2.0, "b": 3.0, "c": 4.0, "d": 1.0}


def known(learnt: Any = "uniform", counts=(70, 20, 10, 0)):
    found = counts and ClassCounts(split="train", images=100, counts=counts)
    return KnownPrevalence(learnt_prevalence=learnt, class_counts=found)


@pytest.fixture
def spec(tiny):
    return tiny.model


@pytest.fixture
def labels(tiny):
    return tiny.model.model_copy(update={"task": "multilabel"})


def shares(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


LOGITS = np.array([[0.5, 0.0, -1.0, 0.25], [0.0, 0.0, 0.0, 0.0]])


def test_a_uniform_model_at_a_wards_counts(spec):
    logits, prevalence = move_to(WARD, spec, known(), "--prior")(LOGITS)
    assert prevalence == pytest.approx([0.2, 0.3, 0.4, 0.1])
    assert shares(logits)[1] == pytest.approx(prevalence)
    odds = shares(logits)[0] / shares(LOGITS)[0]
    assert odds / odds[0] == pytest.approx(prevalence / prevalence[0])
    huge = {name: value * 4e307 for name, value in WARD.items()}
    assert move_to(huge, spec, known(), "--prior")(LOGITS)[1] == pytest.approx(prevalence)


def test_a_model_of_the_training_mix(spec):
    """An image that says nothing has the new prevalence; a class that no training image had stays as it is."""
    move = move_to(WARD, spec, known("training"), "--prior")
    learned = np.array([[70.25, 20.25, 10.25, 1e-9]])
    found = shares(move(np.log(learned))[0])[0]
    assert found[:3] == pytest.approx(np.array([2, 3, 4]) / 9)
    assert found[3] < 1e-8
    same, prevalence = move_to("federation", spec, known("training"), "--prior")(LOGITS)
    assert np.array_equal(same, LOGITS)
    assert prevalence == pytest.approx([70.25 / 101, 20.25 / 101, 10.25 / 101, 0.25 / 101])
    even, _ = move_to("uniform", spec, known("training", (25, 25, 25, 25)), "--prior")(LOGITS)
    assert even == pytest.approx(LOGITS)


def test_named_prevalences(spec):
    same, prevalence = move_to("uniform", spec, known(), "--prior")(LOGITS)
    assert np.array_equal(same, LOGITS)
    assert prevalence.tolist() == [0.25] * 4
    moved, prevalence = move_to("federation", spec, known(), "--prior")(LOGITS)
    assert shares(moved)[1] == pytest.approx(prevalence)
    draw = np.random.default_rng(0)
    seen = 4 * np.eye(4)[draw.choice(4, 2000, p=[0.1, 0.6, 0.2, 0.1])] + draw.normal(size=(2000, 4))
    _, prevalence = move_to("em", spec, known(counts=None), "--prior")(4 * seen)
    assert prevalence == pytest.approx([0.1, 0.6, 0.2, 0.1], abs=0.03)


@pytest.mark.parametrize(("task", "least"), [("multiclass", 100), ("multilabel", 50)])
def test_em_needs_images(spec, task, least):
    move = move_to("em", spec.model_copy(update={"task": task}), known(counts=None), "--prior")
    with pytest.raises(UserError, match=f"there are {least - 1} images.*; at least {least} \\(25 for each class\\)"):
        move(np.zeros((least - 1, 4)))
    move(np.zeros((least, 4)))


def test_labels_move_by_their_odds(labels):
    given = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.3}
    moved, prevalence = move_to(given, labels, known(), "--prior")(np.zeros((1, 4)))
    assert prevalence.tolist() == [0.5, 0.1, 0.9, 0.3]
    assert 1 / (1 + np.exp(-moved[0])) == pytest.approx([0.5, 0.1, 0.9, 0.3])
    every = known("training", (50, 100, 0, 10))  # b is always there, c never: nothing was learned of either
    moved, _ = move_to("uniform", labels, every, "--prior")(np.zeros((1, 4)))
    assert moved[0] == pytest.approx([0, 0, 0, -np.log((10.5 / 101) / (90.5 / 101))])


@pytest.mark.parametrize("suffix", ["json", "csv", "txt"])
def test_files(suffix, spec, tmp_path):
    path = tmp_path / f"ward.{suffix}"
    rows = "\n".join(f"{name};{value}" for name, value in reversed(WARD.items()))
    path.write_text(json.dumps(WARD) if suffix == "json" else f"class;images\n{rows}\n")
    for given in (path, str(path)):
        assert move_to(given, spec, known(), "--prior")(LOGITS)[1] == pytest.approx([0.2, 0.3, 0.4, 0.1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**WARD, "e": 1}, r"'e' is no class of the model; its classes are a, b, c, d\."),
        ({"a": 1, "b": 1}, "has no value for class 'c', 'd'; each class needs one"),
        ({**WARD, "c": -2}, "class 'c' has the value -2; a number above 0 would be right"),
        ({**WARD, "c": 0}, "class 'c' has the value 0; .* at 0 the class would be ruled out, whatever an image shows"),
        ({**WARD, "c": "many"}, "class 'c' has the value 'many'; a number above 0"),
        ({**WARD, "c": True}, "class 'c' has the value True"),
        ({**WARD, "c": float("inf")}, "class 'c' has the value inf"),
        ({**WARD, "c": 10**400}, "class 'c' has the value 1000"),
        ({**WARD, "c": 1e-200, "d": 1e200}, r"class 'c' has the value 1e-200, which is nothing beside 1e\+200 of 'd'"),
        ([0.25] * 4, "is a list; one of 'uniform', 'federation', 'em', a file, or a mapping of classes to"),
    ],
)
def test_mistakes_in_a_prevalence(given, message, spec):
    with pytest.raises(UserError, match=f"^--prior: {message}"):
        move_to(given, spec, known(), "--prior")


def test_labels_have_shares_alone(labels):
    with pytest.raises(UserError, match=r"class 'c' has the value 4\.0; a share of the images above 0 and below 1"):
        move_to({"a": 0.1, "b": 0.1, "c": 4.0, "d": 0.1}, labels, known(), "--prior")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.json", "[1]", r'w.json is no object by class; \{"CLASS": 0.2, …\}'),
        ("w.json", '{"a": 1, "a": 2}', "field 'a' is there twice"),
        ("w.csv", "name,images\na,1\n", "has no column 'class', which names the class of a row"),
        ("w.csv", "class,images\na,1\na,2\n", "w.csv, line 3, has class 'a' twice; one row for each class"),
        ("w.csv", "class,images,share\na,1,2\n", "line 2, has 2 columns beside 'class'"),
        ("w.csv", "class,images\na,x\nb,1\nc,1\nd,1\n", r"w\.csv: class 'a' has the value 'x'"),
    ],
)
def test_mistakes_in_files(name, text, message, spec, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        move_to(tmp_path / name, spec, known(), "--prior")


@pytest.mark.parametrize(
    ("given", "learnt", "counts", "message"),
    [
        ("unifrom", "uniform", None, "'unifrom' is neither 'uniform', 'federation', 'em' nor a file"),
        ("federation", "uniform", None, "needs the class counts of the federation, which the model's header does not"),
        ("uniform", "training", None, "needs the class counts of the federation"),
        ("em", "neither", None, "trained with training.imbalance 'fedlc', with 'weighted_sampler' and several"),
        ("em", None, None, "does not say which prevalence its probabilities are for; an older version wrote it"),
    ],
)
def test_what_a_header_does_not_tell(given, learnt, counts, message, spec):
    with pytest.raises(UserError, match=f"^--prior: .*{message}"):
        move_to(given, spec, known(learnt, counts), "--prior")


@pytest.fixture
def adapter(tiny, tiny_weights, tmp_path):
    """An adapter with random tensors whose header has class counts."""
    experiment = changed(tiny, method={"name": "lora", "options": {}}, training={"imbalance": "balanced_softmax"})
    model = build_model(experiment.model, tiny_weights)
    draw = np.random.default_rng(0)
    tensors = {key: (value + draw.normal(size=value.shape)).astype(np.float32) for key, value in model.state().items()}
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, tensors, adapter_header(experiment) | {"round": 2, "class_counts": COUNTS})
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def predicted(adapter, images, weights, *more):
    out = images.parent / f"{len([*images.parent.iterdir()])}.csv"
    given = ["--out", str(out), "--backbone", str(weights), "--device", "cpu", *map(str, more)]
    assert main(["predict", str(adapter), str(images), *given]) == 0
    with out.open() as file:
        return np.array([[float(row[f"p_{name}"]) for name in "abcd"] for row in csv.DictReader(file)])


def test_the_command_and_python_are_alike(adapter, images, tiny_weights, tmp_path, capsys):
    plain = predicted(adapter, images, tiny_weights)
    (tmp_path / "ward.json").write_text(json.dumps(WARD))
    moved = predicted(adapter, images, tiny_weights, "--prior", tmp_path / "ward.json")
    right = plain * np.array([*WARD.values()])
    assert moved == pytest.approx(right / right.sum(axis=1, keepdims=True), abs=1e-5)
    assert "for the prevalence a 0.2000, b 0.3000, c 0.4000, d 0.1000" in capsys.readouterr().out
    files = sorted(images.iterdir())
    found = pt_peft.load(adapter, backbone=tiny_weights, device="cpu").predict(files, prior=WARD)
    assert found.probabilities == pytest.approx(moved, abs=1e-6)
    assert found.prevalence == pytest.approx([0.2, 0.3, 0.4, 0.1])
    assert found.predicted == tuple("abcd"[place] for place in moved.argmax(axis=1))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_knows_it(name, adapter, images, tiny_weights, tmp_path):
    out = tmp_path / ("m.onnx" if name == "onnx" else "m")
    export(adapter, name, out, tiny_weights)
    weights = None if name in ("timm", "onnx", "monai_bundle") else tiny_weights
    model = pt_peft.load(out, backbone=weights, device="cpu")
    expected = pt_peft.load(adapter, backbone=tiny_weights, device="cpu")
    files = sorted(images.iterdir())
    found = model.predict(files, prior="federation").probabilities
    assert found == pytest.approx(expected.predict(files, prior="federation").probabilities, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"class_counts": {**COUNTS, "counts": [1, 2]}}, "'class_counts.counts' has 2 numbers; one for each of the 4"),
        ({"class_counts": {**COUNTS, "counts": [1, 2, 300, 4]}}, "'images' is 100, and a class has 300"),
        ({"learnt_prevalence": "natural"}, "field 'learnt_prevalence' is \"natural\""),
    ],
)
def test_a_damaged_header_is_refused(damage, message, adapter, images, tiny_weights, capsys):
    tensors, header = load_adapter(adapter)
    save_adapter(adapter, tensors, header | damage)
    given = ["--out", str(images.parent / "p.csv"), "--backbone", str(tiny_weights)]
    assert main(["predict", str(adapter), str(images), *given]) == 1
    assert message in capsys.readouterr().err


def test_what_cannot_be_moved_is_said_before_images_are_read(adapter, images, tiny_weights, capsys):
    tensors, header = load_adapter(adapter)
    save_adapter(adapter, tensors, {**header, "class_counts": None})
    (images / "0.png").write_bytes(b"no image")
    given = ["--out", str(images.parent / "p.csv"), "--backbone", str(tiny_weights), "--prior", "federation"]
    assert main(["predict", str(adapter), str(images), *given]) == 1
    assert "--prior: needs the class counts of the federation" in capsys.readouterr().err
