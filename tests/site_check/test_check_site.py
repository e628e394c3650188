"""`check-site` finds what is wrong with a site's images, and its exit code says whether the site can join."""

import csv
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dicom_files import made
from helpers import ROOT, changed
from pt_peft.__main__ import main
from pt_peft.commands.check_site import _looks_lines
from pt_peft.data.items import Item
from pt_peft.experiment.limits import Limits
from pt_peft.privacy.accounting import epsilon
from pt_peft.privacy.plan import steps_of_a_round
from pt_peft.site_check.findings import Findings
from pt_peft.site_check.images import check_classes
from pt_peft_flare.job_folder import write_job

CLASSES = ("benign", "malignant")
OPEN = dict.fromkeys(Limits.model_fields) | {"max_rounds": 1000}
"""Limits that matter to no job here; with none at all `check-site` warns."""


@pytest.fixture
def site(tmp_path, tiny, tiny_weights):
    """Makes a site of ten good images a class in a table, on the tiny ViT at 32 px; `add` adds files and rows."""

    class Made:
        folder = tmp_path / "images"

        def __init__(self):
            self.folder.mkdir()
            self.rows: list[dict] = []
            self.data: dict = {"source": "site", "classes": list(CLASSES)}
            self.own: dict = {"table": "table.csv", "images": "images", "columns": {"group": "patient"}}
            self.settings: dict = {}
            self.privacy: dict = {}
            self.job: dict = {}
            random = np.random.default_rng(0)
            for index in range(20):
                split = {8: "val", 9: "test"}.get(index % 10, "train")
                self.add(
                    f"{index}.png", Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)), split=split
                )

        def add(self, name: str, image: Image.Image | bytes, label=None, split="train", patient=None, **save):
            path = self.folder / name
            if isinstance(image, bytes):
                path.write_bytes(image)
            else:
                image.save(path, **save)
            label = label or CLASSES[len(self.rows) % 2]
            self.rows.append({"file": name, "label": label, "split": split, "patient": patient or name})

        def check(self, capsys, *options) -> tuple[int, str, str]:
            with open(tmp_path / "table.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
            site = {"data": self.own, "backbone": str(tiny_weights), "cache": "cache"}
            (tmp_path / "site.json").write_text(json.dumps({"limits": OPEN} | site | self.settings))
            (tmp_path / "experiment.json").write_text(
                changed(tiny, data=self.data, privacy=self.privacy, **self.job).to_json()
            )
            code = main(["check-site", str(tmp_path / "site.json"), *options])
            return code, *capsys.readouterr()

        def report(self, capsys) -> dict:
            code, out, _ = self.check(capsys, "--no-timing", "--json")
            report = json.loads(out)
            assert code == bool(report["errors"])
            return report

    return Made()


def kinds(findings: list[dict]) -> dict[str, int]:
    return {one["kind"]: one["count"] for one in findings}


def test_a_good_site_passes_and_knows_what_a_round_costs(site, capsys):
    code, out, err = site.check(capsys)
    assert code == 0
    assert "error" not in err
    assert "train       16" in out
    assert "width   48 to 48 pixels, median 48" in out
    assert "cache   0.00 GB" in out
    code, out, _ = site.check(capsys, "--json")
    report = json.loads(out)
    assert code == 0
    assert not report["errors"]
    assert not report["warnings"]
    assert report["images"]["train"] == {"images": 16, "classes": {"benign": 8, "malignant": 8}}
    assert report["cache"]["bytes"] == 20 * 3 * 32 * 32
    # LoRA of rank 4 on two blocks of width 32, three prompts a block, and the head, float32.
    parameters = 2 * 4 * (32 + 96) + 2 * 3 * 32 + 2 * 33
    assert report["round"]["bytes_out"] == report["round"]["bytes_in"] == 4 * parameters
    assert report["round"]["steps"] == 1
    assert 0 < report["round"]["seconds"] < 60


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"head": {"start": "ridge"}, "federation": {"rounds": 0}},
        {"training": {"control_variates": True}, "federation": {"rounds": 3, "lora_ranks": {}}},
        {"method": {"name": "sba", "options": {}}},
    ],
    ids=["adapters", "statistics", "control variates", "tensors that rotate"],
)
def test_bytes_need_no_timing_and_no_weights(site, capsys, job):
    site.job = job
    timed = json.loads(site.check(capsys, "--json")[1])["round"]
    shown = site.check(capsys)[1]
    site.settings = {"backbone": "nowhere.safetensors"}
    code, out, err = site.check(capsys, "--no-timing", "--json")
    assert code == 0, err
    found = json.loads(out)["round"]
    unknown = dict.fromkeys(("statistics_seconds", "seconds", "device", "threads", "process_memory"))
    assert found == timed | unknown
    lines = [line for line in site.check(capsys, "--no-timing")[1].splitlines() if " kB in" in line]
    assert lines
    for line in lines:
        assert line.split(" kB out")[0] in shown
        assert "about" not in line
        assert "GB of memory" not in line


def test_a_mean_of_about_zero_has_no_sign():
    looks: Any = {
        **{side: {"smallest": 1, "largest": 1, "median": 1} for side in ("width", "height")},
        "fit": {"fit": "crop", "not_square": 0, "mean": 0.0, "largest": 0.0, "file": ""},
        "modes": {"RGB": 1},
        "stored_range": (0, 255),
        "normalised_mean": (-0.001, 0.004, -0.5),
        "normalised_std": (1.0, 1.0, 1.0),
    }
    assert "mean (0.00, 0.00, -0.50)" in _looks_lines(looks)[-1]


def test_a_job_of_statistics_alone(site, capsys):
    """No step is taken; a class of few images stays out of the sums."""
    site.job = {"head": {"start": "ridge"}, "federation": {"rounds": 0}}
    site.settings = {"limits": OPEN | {"min_images_per_class": 9}}
    code, out, _ = site.check(capsys, "--json")
    report = json.loads(out)
    assert code == 0
    assert kinds(report["warnings"]) == {"small class": 2}
    assert "class 'benign' has 8 training image(s), fewer than the 9" in json.dumps(report["warnings"])
    assert report["round"]["steps"] == 0
    sums = 8 * (2 + 2 * 32 + 32 * 33 // 2)
    assert report["round"]["statistics_out"] == 8 * 2 + sums + 8 * 5 * 49
    assert report["round"]["statistics_in"] == 2 * (report["round"]["bytes_in"] + 8 * 2) + sums
    assert 0 < report["round"]["statistics_seconds"] < 60
    text = site.check(capsys)[1]
    assert f"{report['round']['statistics_out'] / 1e3:,.1f} kB out, about " in text
    assert "rounds  none; " in text
    assert "steps" not in text
    site.settings = {"limits": OPEN | {"bytes_per_round": 4000, "min_images_per_class": 1}}
    assert "5128 bytes a round" in site.check(capsys)[1]


def test_a_job_outside_the_sites_own_limits(site, capsys):
    site.settings = {"limits": OPEN | {"methods": ["bitfit"]}}
    report = site.report(capsys)
    assert kinds(report["errors"]) == {"limits": 1}
    site.settings = {"limits": OPEN | {"bytes_per_round": 100}}
    code, out, _ = site.check(capsys, "--json")
    (error,) = json.loads(out)["errors"]
    assert code == 1
    assert error["kind"] == "limits"
    assert "'bytes_per_round'" in json.dumps(error)
    site.settings = {"limits": {}}
    report = site.report(capsys)
    (error,) = report["errors"]
    assert error["examples"] == [
        "the site refuses the job by field 'min_train_images' of its limits: it asks for a round on 16 training "
        "image(s); allowed: at least 50",
        "the site refuses the job by field 'min_steps' of its limits: it asks for a round of 1 step(s); allowed: at "
        "least 2",
    ]
    assert kinds(report["warnings"]) == {"small split": 2}


@pytest.fixture
def job(tiny, tmp_path):
    """A job folder, as it is submitted."""
    write_job(changed(tiny, name="job"), tmp_path / "my_job", installed=True)
    return tmp_path / "my_job"


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def checked(capsys, tmp_path, job, limits, *options, code=1) -> tuple[dict, str]:
    """The report and the last words of a check of a site that sets `limits`, and has generated images."""
    (tmp_path / "site.json").write_text(json.dumps({"limits": limits}))
    assert main(["check-site", str(tmp_path / "site.json"), str(job), "--no-timing", "--json", *options]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_job_whose_egress_filter_was_removed(job, tmp_path, capsys):
    edit(job / "app" / "config" / "config_fed_client.json", task_result_filters=[])
    report, err = checked(capsys, tmp_path, job, OPEN)
    (error,) = report["errors"]
    assert (error["kind"], error["count"]) == ("job", 4)
    assert "'task_result_filters' must end with pt_peft_flare.filters.EgressFilter for task 'train'" in str(error)
    assert "error: " + f"{job}: this site refuses the job 'job'." in err
    assert "mended" not in err


def test_a_job_that_brings_code(job, tmp_path, capsys):
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "evil.py").write_text("")
    report, _ = checked(capsys, tmp_path, job, OPEN)
    assert [one["kind"] for one in report["errors"]] == ["job"]
    assert "the job brings code (custom/evil.py)" in str(report["errors"])


def test_a_job_for_one_site(job, tmp_path, capsys):
    """By its metadata, whatever federation.min_sites says."""
    limits = OPEN | {"min_sites": 2}
    checked(capsys, tmp_path, job, limits, code=0)
    edit(job / "meta.json", deploy_map={"app": ["server", "hospital-1"]})
    report, err = checked(capsys, tmp_path, job, limits, "--name", "hospital-1")
    assert "it asks for a job that is deployed to 1 site(s); allowed: at least 2" in str(report["errors"])
    assert "this site refuses the job 'job'" in err
    assert main(["check-site", str(tmp_path / "site.json"), str(job), "--name", "hospital-2"]) == 1
    assert "field 'deploy_map' gives nothing to 'hospital-2'" in capsys.readouterr().err
    edit(job / "meta.json", deploy_map=3)
    assert main(["check-site", str(tmp_path / "site.json"), str(job)]) == 1
    assert "meta.json: is not as FLARE writes it" in capsys.readouterr().err


def test_all_limits_that_a_job_is_outside_of(tiny, tmp_path, capsys):
    much = changed(
        tiny, name="much", federation={"rounds": 5000, "min_sites": 1}, training={"local_epochs": 101, "batch_size": 8},
        data={"images_per_site": {"train": 8, "val": 8, "test": 8}}, aggregation={"name": "mean"},
    )  # fmt: skip
    (tmp_path / "much.json").write_text(much.to_json())
    report, err = checked(capsys, tmp_path, tmp_path / "much.json", {"backbones": []})
    fields = [one.partition("by field '")[2].partition("'")[0] for one in report["errors"][0]["examples"]]
    assert fields == ["backbones", "min_sites", "max_rounds", "max_local_epochs", "min_train_images"]
    assert report["errors"][0]["kind"] == "limits"
    assert "error: " + f"{tmp_path / 'much.json'}: this site refuses the job 'much'." in err


def test_a_method_that_is_misspelt_in_the_limits_is_told(job, tmp_path, capsys):
    report, _ = checked(capsys, tmp_path, job, {"methods": [*(Limits().methods or ()), "loar"]})
    (warning,) = [one for one in report["warnings"] if one["kind"] == "unknown method"]
    assert "'limits.methods' of site.json names 'loar', no method; did you mean 'lora'?" in str(warning)


def test_limits_that_are_off_are_told(job, tmp_path, capsys):
    for limits in (None, dict.fromkeys(Limits.model_fields)):
        report, _ = checked(capsys, tmp_path, job, limits, code=0)
        (warning,) = [one for one in report["warnings"] if one["kind"] == "limits are off"]
        assert "all limits are off. The defaults would refuse this job: the site refuses" in str(warning)
        assert "by field 'min_train_images'" in str(warning)


@pytest.mark.parametrize(("limits", "warns"), [({}, "2"), ({"min_sites": None}, "off"), ({"min_sites": 3}, None)])
def test_a_kits_site_that_has_lost_its_min_sites(limits, warns, job, tmp_path, capsys):
    settings = tmp_path / "kit" / "local"
    settings.mkdir(parents=True)
    (tmp_path / "kit" / "startup").mkdir()
    report, _ = checked(capsys, settings, job, {"min_train_images": 1, "min_steps": 1, **limits}, code=0)
    found = [one["examples"][0] for one in report["warnings"] if one["kind"] == "few sites"]
    assert ["limits is " + (warns or "") in one for one in found] == [True] * bool(warns)


def test_what_privacy_will_cost(site, capsys, tiny):
    site.privacy = {"sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}}
    site.settings = {"limits": OPEN | {"max_epsilon": 100.0}}
    report = site.report(capsys)
    experiment = changed(tiny, privacy=site.privacy)
    expected = epsilon(
        experiment.federation.rounds * steps_of_a_round(experiment, report["images"]["train"]["images"]), 1e-5
    )
    assert report["privacy"] == {"epsilon": expected, "delta": 1e-5, "rounds": 2, "releases": 0}
    assert not report["errors"]
    site.settings = {"limits": OPEN | {"max_epsilon": 0.9 * expected}}
    code, out, _ = site.check(capsys, "--no-timing")
    assert code == 1
    assert "error: limits (1)" in out
    assert f"an epsilon of {expected:.3g} at delta 1e-05 with 2 round(s); allowed:" in out
    assert f"privacy epsilon {expected:.3g} at delta 1e-05 for 2 round(s)" in out


@pytest.mark.parametrize(
    ("fit", "words", "warnings"),
    [
        ("pad", "of the model's input is filled up", {}),
        ("crop", "of an image's area is cut away", {"cut images": 1}),
        ("squash", "of the longer side's length is squeezed out", {}),
    ],
)
def test_what_becomes_of_images_that_are_not_square(site, capsys, fit, words, warnings):
    """Twenty of 48 x 40 pixels, two square ones, and one of 3:2."""
    for index in range(2):
        site.add(f"square{index}.png", Image.new("RGB", (40, 40), (index, 200, 90)))
    site.add("wide.png", Image.linear_gradient("L").resize((60, 40)))
    site.data |= {"fit": fit}
    report = site.report(capsys)
    mean = (20 * (1 - 40 / 48) + 1 / 3) / 23
    shares = {"mean": round(mean, 4), "largest": 0.3333, "file": "wide.png"}
    assert report["looks"]["fit"] == {"fit": fit, "not_square": 21, **shares}
    assert {kind: count for kind, count in kinds(report["warnings"]).items() if "blank" not in kind} == warnings
    if warnings:
        assert report["warnings"][-1]["examples"] == [
            f"data.fit 'crop' cuts away {mean:.1%} of an image's area on average, and 33.3% of 'wide.png'; 'pad' would "
            "keep all of it."
        ]
    _, out, _ = site.check(capsys, "--no-timing")
    assert f"fit     {fit}: {mean:.1%} {words} on average, 33.3% at most ('wide.png')" in out


def test_each_kind_of_bad_image(site, capsys):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    good = site.folder / "whole.png"
    Image.fromarray(noise).save(good)
    whole = good.read_bytes()
    good.unlink()
    site.add("truncated.png", whole[: len(whole) // 2])
    site.add("empty.png", b"")
    site.add("text.jpg", b"not an image")
    site.add("cmyk.jpg", Image.fromarray(noise).convert("CMYK"))
    site.add("one_pixel.png", Image.fromarray(noise[:1, :1]))
    site.add("twelve_bits.png", Image.fromarray(np.linspace(0, 4095, 1600).reshape(40, 40).astype(np.uint16)))
    site.add("long.png", Image.fromarray(noise[:20]))
    site.add("blank.png", Image.new("L", (40, 40), 7))
    site.add("gone.png", b"")
    (site.folder / "gone.png").unlink()
    report = site.report(capsys)
    assert kinds(report["errors"]) == {"no such image": 1, "unreadable image": 3}
    examples = "\n".join(example for error in report["errors"] for example in error["examples"])
    for name in (
        "'truncated.png' (train): ",
        "'empty.png' (train): ",
        "'text.jpg'",
        "1 of 29 rows are not taken: column 'file' should be the path of a file inside",
        "(first: line 30 'gone.png')",
    ):
        assert name in examples
    warnings = kinds(report["warnings"])
    # One pixel is blank as well.
    assert warnings == {
        "long images": 1,
        "tiny image": 1,
        "dark 16-bit image": 1,
        "blank image": 1,
        "enlarged images": 1,
    }
    assert "'twelve_bits.png' uses 12 of its 16 bits, so that it is at most 15 of 255 bright" in json.dumps(
        report["warnings"]
    )
    assert report["looks"]["modes"]["CMYK"] == 1
    assert report["looks"]["stored_range"] == [0, 4095]
    # Few enough, and the site goes on without them.
    site.settings = {"max_unreadable": 0.2}
    report = site.report(capsys)
    assert not report["errors"]
    assert kinds(report["warnings"])["unreadable image"] == 4


@pytest.mark.parametrize(("bits", "bright"), [(8, 0), (9, 1), (12, 15), (14, 63), (15, 127), (16, None)])
@pytest.mark.parametrize("colour", [False, True])
def test_bits_in_use(site, capsys, bits, bright, colour):
    """A file of 16 bits whose values use fewer is as much darker."""
    grey = np.linspace(0, 2**bits - 1, 1600).reshape(40, 40).astype(np.uint16)
    site.add("deep.png", _png_16(np.stack([grey] * 3, axis=-1)) if colour else Image.fromarray(grey))
    found = {one["kind"]: one["examples"] for one in site.report(capsys)["warnings"]}
    advice = "save it with 8 bits a channel, scaled" if colour else "data.intensity 'image' would take its own range"
    if colour and bits == 8:  # of which Pillow reads nothing
        assert found == {"blank image": ["every pixel of 'deep.png' is 0."]}
    elif bright is None:
        assert not found
    else:
        (example,) = found["dark 16-bit image"]
        assert (
            example == f"'deep.png' uses {bits} of its 16 bits, so that it is at most {bright} of 255 bright; {advice}."
        )
        site.data = site.data | {"intensity": "image"}
        assert ("dark 16-bit image" in kinds(site.report(capsys)["warnings"])) == colour


def test_masks_among_the_images(site, capsys):
    """BUSI has a mask beside each image; a blank image is none."""
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 20, 20))
    for index, mode in enumerate(("1", "L", "RGB")):
        site.add(f"{index}_mask.png", mask.rotate(90 * index).convert(mode))
    site.add("blank.png", Image.new("L", (40, 40)))
    found = {one["kind"]: one["examples"] for one in site.report(capsys)["warnings"]}
    assert set(found) == {"images of two values", "blank image"}
    assert found["images of two values"][0].startswith(
        "3 of 24 images (first: '0_mask.png', '1_mask.png', '2_mask.png') have two values alone, as the masks of a "
    )


@pytest.mark.parametrize(
    ("patients", "warns"),
    [
        (["A", "A", "A", "B"], "1 of 2 patients, by DICOM's patient ID, have images in several splits, such as "
         "'d0.dcm' (train) and 'd2.dcm' (test)"),
        (["A", "A", "B", "B"], None),
        (["A"] * 4, None),  # anonymous
        (["", "unknown", "", "unknown"], None),
    ],
)  # fmt: skip
def test_a_dicom_patient_in_several_splits(site, capsys, patients, warns):
    """A flat folder says nothing of patients; the files do."""
    random = np.random.default_rng(2)
    for index, (patient, split) in enumerate(zip(patients, ("train", "train", "test", "test"), strict=True)):
        pixels = random.integers(0, 256, (40, 48), dtype=np.uint8)
        site.add(f"d{index}.dcm", made(pixels, "MONOCHROME2", 8, PatientID=patient), split=split)
    found = {one["kind"]: one["examples"][0] for one in site.report(capsys)["warnings"]}
    assert set(found) == ({"patient in several splits"} if warns else set())
    assert warns is None or found["patient in several splits"].startswith(warns)


def _png_16(pixels: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content) for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def test_what_is_odd_about_dicom_is_a_warning(site, capsys):
    pixels = np.random.default_rng(2).integers(0, 4096, (40, 40)).astype(np.uint16)
    site.add("odd", made(pixels, "MONOCHROME2", 12, WindowCenter=5, WindowWidth=0))
    report = site.report(capsys)
    (warning,) = report["warnings"]
    assert warning["kind"] == "DICOM window that has no meaning"
    assert warning["examples"] == [
        "'odd' has a LINEAR window of centre/width 5/0; the range of its own values is shown instead."
    ]


def test_files_of_several_frames(site, capsys):
    frames = np.random.default_rng(2).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    site.add("run.dcm", made(frames, "MONOCHROME2", 8, NumberOfFrames=3))
    (error,) = site.report(capsys)["errors"]
    assert error["examples"][0].startswith("'run.dcm' (train): has 3 frames or pages; data.frames in site.json")
    before = site.own
    for value, images in ((0, 17), ("all", 19)):
        site.own = before | {"frames": value}
        report = site.report(capsys)
        assert report["images"]["train"]["images"] == images
        assert not report["errors"]
        assert not report["warnings"]  # the frames of a file are not the same image twice


def test_each_kind_of_bad_row(site, capsys):
    site.add("odd.png", Image.new("RGB", (40, 40), "red"), label="maybe")
    site.rows.append({**site.rows[0]})
    site.rows.append({"file": "../secret.png", "label": "benign", "split": "train", "patient": "x"})
    site.rows.append({"file": "5.png", "label": "benign", "split": "dev", "patient": "x"})
    site.rows.pop(5)
    site.rows[7]["patient"] = site.rows[2]["patient"]  # 8.png is for validation, 2.png for training
    report = site.report(capsys)
    assert kinds(report["errors"]) == {
        "group in two splits": 1,
        "unknown label": 1,
        "listed twice": 1,
        "no such image": 1,
        "unknown split": 1,
    }
    code, out, err = site.check(capsys, "--no-timing")
    assert code == 1
    assert "site.json: 5 error(s) must be mended before this site can join 'tiny'." in err
    assert "error: unknown label (1)" in out
    assert "column 'label': 'maybe' (1 image(s), the first in line 21) means none of the experiment's classes" in out


def test_copies(site, capsys):
    image = Image.open(site.folder / "0.png")
    site.add("copy.png", image, label="benign")
    site.add("other_label.png", image, label="malignant")
    site.add("leak.png", image, label="benign", split="test")
    (site.folder / "not_listed.png").write_bytes(b"")
    report = site.report(capsys)
    assert kinds(report["errors"]) == {"same image in two splits": 1}
    assert kinds(report["warnings"]) == {"image without a row": 1, "same image twice": 2, "same image, other label": 1}


def test_splits_and_classes_that_are_empty(site, capsys):
    site.rows = [row for row in site.rows if row["split"] == "train" and row["label"] == "benign"]
    warnings = site.report(capsys)["warnings"]
    assert kinds(warnings) == {"image without a row": 1, "empty split": 1, "class without images": 1}
    (message,) = next(one["examples"] for one in warnings if one["kind"] == "image without a row")
    assert "12 of 20 images are not taken: no row of " in message
    assert message.endswith("table.csv has them (first: '1.png', '11.png', '13.png', …).")


@pytest.mark.parametrize(
    ("imbalance", "counts", "words"),
    [
        ("none", (40, 4), "class 'naevus' has 10 times the training images of 'melanoma'"),
        ("none", (39, 4), None),
        ("none", (40, 0), None),
        ("weighted_loss", (40, 4), None),
        ("weighted_loss", (40, 0), "the site unlearns classes of which it has no images"),
        ("balanced_softmax", (40, 0), None),
        ("none", (0, 0), None),
    ],
)
def test_an_objective_that_does_not_suit_the_classes(tiny, imbalance, counts, words):
    experiment = changed(tiny, data={"classes": ["naevus", "melanoma"]}, training={"imbalance": imbalance})
    items = [Item(str(n), (label,), "train", str(n)) for label, count in enumerate(counts) for n in range(count)]
    findings = Findings()
    check_classes(experiment, items, findings)
    found = [one.examples for one in findings.of("warning") if one.kind == "rare classes"]
    assert len(found) == (words is not None)
    assert not words or (words in found[0][0] and "'balanced_softmax' would" in found[0][0])


def test_images_unlike_what_the_backbone_knows(site, capsys):
    for row in site.rows:
        Image.fromarray(np.full((40, 40), 3, np.uint8) + np.eye(40, dtype=np.uint8)).save(site.folder / row["file"])
    assert "unusual intensities" in kinds(site.report(capsys)["warnings"])


def test_a_cache_and_weights_that_do_not_fit(site, capsys, tmp_path):
    site.settings = {"cache_gb": 1e-6, "backbone": "other.safetensors"}
    (tmp_path / "other.safetensors").write_bytes(b"other")
    code, out, _ = site.check(capsys)
    assert code == 1
    assert "error: cache limit (1)" in out
    assert "error: other backbone (1)" in out
    assert "has SHA-256" in out


def test_it_shows_which_values_mean_which_class(site, capsys):
    for index, row in enumerate(site.rows):
        row["label"] = {"benign": "nv", "malignant": "mel" if index < 6 else "MM"}[row["label"]]
    site.own["classes"] = {"benign": ["nv"], "malignant": ["mel", "MM", "meta"]}
    report = site.report(capsys)
    assert report["values"] == {"benign": {"nv": 10}, "malignant": {"MM": 7, "mel": 3}}
    assert report["images"]["train"]["classes"] == {"benign": 8, "malignant": 8}
    _, out, _ = site.check(capsys, "--no-timing")
    assert "labels  benign     'nv' 10\n        malignant  'MM' 7, 'mel' 3\n" in out
    site.own["classes"]["malignant"].remove("MM")
    report = site.report(capsys)
    (error,) = report["errors"]
    assert (error["kind"], error["count"]) == ("unknown label", 1)
    assert "'MM' (7 image(s), the first in line 9) means none" in error["examples"][0]


def test_a_job_that_does_not_go_with_the_sites_own_images(site, capsys, tiny, tmp_path):
    site.own["classes"] = {"melanoma": ["malignant"]}
    (error,) = site.report(capsys)["errors"]
    assert "field 'data.classes' has the class 'melanoma', which the experiment does not have" in error["examples"][0]


def test_an_image_folder(site, capsys, tmp_path):
    for name in ("benign", "malignant", "unsure"):
        (site.folder / name).mkdir()
    for index, row in enumerate(site.rows):
        folder = "unsure" if index == 3 else row["label"]
        (site.folder / row["file"]).rename(site.folder / folder / row["file"])
    site.own = {"source": "image_folder", "images": "images"}
    report = site.report(capsys)
    assert kinds(report["errors"]) == {"unknown label": 1}
    assert not report["warnings"]
    assert sum(split["images"] for split in report["images"].values()) == 19
    site.own |= {"leave_out": ["unsure"]}
    (site.folder / "notes.txt").write_text("no image")
    report = site.report(capsys)
    assert not report["errors"]
    assert kinds(report["warnings"]) == {"not taken": 1, "left out": 1}
    (site.folder / "benign" / "gone.png").symlink_to("/not/mounted/gone.png")
    report = site.report(capsys)
    assert kinds(report["errors"]) == {"broken link": 1}
    assert "(first: 'benign/gone.png')" in report["errors"][0]["examples"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "nowhere.json: cannot be read"),
        (
            ["site.json"],
            "experiment.json: does not exist. Classes and backbone are the experiment's: name the job folder",
        ),
        (["site.json", "nowhere"], "nowhere: is neither an experiment.json nor a job folder"),
    ],
)
def test_what_cannot_be_checked(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("site.json").write_text("{}")
    assert main(["check-site", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_demo_has_no_files_to_check(tmp_path, capsys):
    (tmp_path / "site.json").write_text("{}")
    job = ROOT / "jobs" / "lora_vpt"
    assert main(["check-site", str(tmp_path / "site.json"), str(job), "--no-timing", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"]["train"]["images"] == 384
    assert report["looks"] is None


@pytest.mark.parametrize(
    ("name", "classes", "own", "counts", "errors", "warnings"),
    [
        pytest.param(
            "chest_xray_kermany_224",
            ["normal", "pneumonia"],
            {"columns": {"label": "class", "group": "patient"}},
            {"train": 4691, "val": 525, "test": 624},
            {},
            {"same image twice": 32},
            marks=pytest.mark.slow,
        ),
        (
            "cifar10_subset_32",
            list("0123456789"),
            {},
            {"train": 9000, "val": 1000, "test": 2000},
            {},
            {},
        ),
        (
            "pneumoniamnist_28",
            ["normal", "pneumonia"],
            {"source": "npz", "npz": "pneumoniamnist.npz"},
            {"train": 4708, "val": 524, "test": 624},
            {},
            {"same image in two splits": 8, "same image twice": 21, "enlarged images": 1},
        ),
    ],
)
def test_real_images(shared, tiny, tmp_path, capsys, name, classes, own, counts, errors, warnings):
    folder = shared / name
    locations = {"images": "images.zip", "table": "metadata.csv"} if "npz" not in own else {"npz": own["npz"]}
    own = own | {field: str(folder / file) for field, file in locations.items()}
    (tmp_path / "site.json").write_text(json.dumps({"data": own, "cache": str(tmp_path)}))
    data = {"source": "site", "classes": classes}
    (tmp_path / "experiment.json").write_text(changed(tiny, data=data).to_json())
    code = main(["check-site", str(tmp_path / "site.json"), "--no-timing", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert {split: one["images"] for split, one in report["images"].items()} == counts
    assert kinds(report["errors"]) == errors
    assert kinds(report["warnings"]) == warnings
