"""Curves, images and tables of TensorBoard, from entries of a record."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata

from curve_data import NAMES, Curves, cross_site_entry, final_entry, metrics, round_entry, stage_entry
from helpers import changed
from pt_peft_flare.curves import MOST_CLASSES, TAGS, Points, cross_site_curves, final_curves, round_curves, stage_curves
from pt_peft_flare.round_log import log_confusion, log_cross_site, log_final, log_round, log_stage
from pt_peft_flare.run_record import METRICS, SPLITS
from pt_peft_flare.table_image import CELL, DARKEST, SIDE, draw_confusion, draw_cross_site
from pt_peft_flare.tensorboard_receiver import FIRST, LAYOUT, OUTCOME


def shown(curves: Iterable[Points]) -> dict[str, dict[str, tuple[int, float]]]:
    """By source and tag the step and value of what is there."""
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for source, step, values in curves:
        found.setdefault(source, {}).update({tag: (step, one) for tag, one in values.items() if one is not None})
    return found


def test_sites_and_the_federation_have_the_same_tags(tiny):
    found = shown(round_curves(round_entry(1), tiny.data))
    site, whole = found["site-2"], found["global"]
    assert site["val/balanced_accuracy"] == (1, pytest.approx(0.56))
    assert whole["val/balanced_accuracy"] == (1, pytest.approx(0.56))
    assert whole["val_pooled/balanced_accuracy"] == (1, pytest.approx(0.57))
    assert (site["train/loss"], whole["train/loss"]) == ((2, pytest.approx(0.85)), (2, pytest.approx(0.85)))
    assert (site["time/round_s"], whole["time/round_s"]) == ((2, 3.0), (2, 5.0))
    assert (site["bytes/in"], whole["bytes/in"], whole["bytes/out"]) == ((2, 100), (2, 300), (2, 150))
    assert (site["privacy/epsilon"], whole["privacy/epsilon"]) == ((2, 2.0), (2, 3.0))
    assert (site["aggregation/share"], whole["aggregation/sites"]) == ((2, 0.25), (2, 3))
    assert "aggregation/share" not in whole
    assert site["own_val/loss"] == (1, 0.4)


def test_each_class_has_its_area_where_it_says_more_than_the_mean(tiny):
    first, *others = (round_entry(0) for _ in range(2))
    first["sites"]["site-1"]["val"] = metrics(0.5, (1.0, 0.25, 0.5, None))
    found = shown(round_curves(first, tiny.data))
    assert found["site-1"]["val_auroc/c"] == (0, 0.5)
    assert "val_auroc/c" not in found["site-2"]
    assert {tag: one for tag, one in found["global"].items() if tag.startswith("val_auroc")} == {
        "val_auroc/a": (0, pytest.approx(2 / 3)),
        "val_auroc/b": (0, pytest.approx(1.75 / 3)),
        "val_auroc/c": (0, 0.5),
        "val_auroc/d": (0, 1.0),
    }
    for classes, task, expected in ((2, "multiclass", 0), (2, "multilabel", 2), (MOST_CLASSES + 1, "multiclass", 0)):
        data: Any = SimpleNamespace(classes=[f"c{number}" for number in range(classes)], task=task)
        entry = others[0]
        for report in entry["sites"].values():
            report["val"] = metrics(0.5, [0.5] * classes)
        tags = shown(round_curves(entry, data))["global"]
        assert sum(tag.startswith("val_auroc/") for tag in tags) == expected


def test_the_table_of_tags_is_all_that_is_drawn(tiny):
    cross_site = cross_site_entry()
    parts = {"SPLIT": "|".join(SPLITS), "METRIC": "|".join(METRICS), "CLASS": "|".join(tiny.data.classes)}
    parts["MODEL"] = "|".join(map(re.escape, cross_site["models"]))
    patterns = {
        tag: re.sub("SPLIT|METRIC|CLASS|MODEL", lambda found: f"(?:{parts[found.group()]})", tag.name) for tag in TAGS
    }
    entries = (round_curves(round_entry(1), tiny.data), stage_curves(stage_entry()))
    ends = (final_curves(final_entry(), 2, tiny.data), cross_site_curves(cross_site, 2, "balanced_accuracy"))
    curves = [points for one in (*entries, *ends) for points in one]
    for column in ("at_site", "at_global"):
        expected = {pattern for tag, pattern in patterns.items() if getattr(tag, column)}
        drawn = {
            tag
            for source, _, values in curves
            for tag, value in values.items()
            if value is not None and (source == "global") == (column == "at_global")
        }
        matched = {pattern: {tag for tag in drawn if re.fullmatch(pattern, tag)} for pattern in expected}
        assert set().union(*matched.values()) == drawn
        assert all(matched.values()), f"{column}: nothing draws {[one for one, tags in matched.items() if not tags]}"
    charted = [tag for charts in LAYOUT.values() for tags in charts.values() for tag in tags]
    assert all(any(re.fullmatch(pattern, tag) for pattern in patterns.values()) for tag in (*charted, *OUTCOME))


def test_the_epsilon_of_a_release_is_a_curve():
    """A job without rounds has no other."""
    entry = stage_entry()
    for name, epsilon in zip(NAMES, (1.5, 2.5, None), strict=True):
        entry["sites"][name]["epsilon"] = epsilon
    drawn = {source: tags.get("privacy/epsilon") for source, tags in shown(stage_curves(entry)).items()}
    assert drawn == {"site-1": (0, 1.5), "site-2": (0, 2.5), "site-3": None, "global": (0, 2.5)}


@pytest.fixture
def drawn(tiny, tmp_path) -> Path:
    """The curves of a job of two rounds."""
    experiment = changed(tiny, federation={"rounds": 2})
    curves = Curves(tmp_path / "run", experiment)
    log_stage(curves.engine, stage_entry())
    for number in range(2):
        log_round(curves.engine, experiment, round_entry(number))
    log_final(curves.engine, experiment, final_entry())
    log_cross_site(curves.engine, experiment, cross_site_entry())
    log_confusion(curves.engine, experiment, final_entry())
    return curves.end("finished")


def events(folder: Path) -> Any:
    return EventAccumulator(str(folder)).Reload()


def test_what_tensorboard_reads(drawn, tiny):
    assert {path.name for path in drawn.iterdir()} == {"global", *NAMES}
    for name in NAMES:
        points = events(drawn / name).Scalars("val/balanced_accuracy")
        place = NAMES.index(name) / 100
        assert [(one.step, one.value) for one in points] == [
            (0, pytest.approx(0.5 + place)), (1, pytest.approx(0.55 + place)), (2, pytest.approx(0.7)),
        ]  # fmt: skip
    tags = events(drawn / "global").Tags()
    assert tags["images"] == ["cross_site/val", "cross_site/test", "confusion/val", "confusion/test"]
    assert events(drawn / "site-1").Tags()["images"] == ["confusion/val", "confusion/test"]
    assert events(drawn / "site-3").Tags()["images"] == ["confusion/val"]
    (image,) = events(drawn / "site-1").Images("confusion/test")
    assert image.step == 2
    (told,) = events(drawn / "global").Tensors("experiment")
    assert changed(tiny, federation={"rounds": 2}).to_json() in told.tensor_proto.string_val[0].decode()


def test_a_model_has_one_tag_at_all_sites(drawn):
    def values(name: str, tag: str) -> list[tuple[int, Any]]:
        return [(one.step, one.value) for one in events(drawn / name).Scalars(tag)]

    for name in ("global", *NAMES):
        assert values(name, "val_cross_site/SRV_adapter.safetensors") == [(2, pytest.approx(0.7))]
    assert values("site-3", "val_cross_site/site-1") == [(2, pytest.approx(0.7))]
    assert "val_cross_site/site-1" not in events(drawn / "site-2").Tags()["scalars"], "a hole"
    assert "test_cross_site/site-1" not in events(drawn / "site-3").Tags()["scalars"], "it has no test images"


def test_holes_are_told_with_their_reasons(tiny, tmp_path, caplog):
    log_cross_site(Curves(tmp_path / "run", tiny).engine, tiny, cross_site_entry())
    reason = "the site has too little memory for the job"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"cross-site evaluation: no result of site-2 for site-1: {reason}",
        f"cross-site evaluation: site-2 has not sent its own model: {reason}",
        f"cross-site evaluation: site-3 has not sent its own model: {reason}",
    ]


def test_all_sites_are_on_one_chart(drawn):
    (tensor,) = events(drawn / "global").Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    first = layout.category[0].chart[0]
    patterns = [re.compile(pattern) for pattern in first.multiline.tag]
    for name in ("global", *NAMES):
        tags = events(drawn / name).Tags()["scalars"]
        expected = {"val/balanced_accuracy"} | ({"val_pooled/balanced_accuracy"} if name == "global" else set())
        assert {tag for tag in tags if any(pattern.match(tag) for pattern in patterns)} == expected


@pytest.mark.parametrize(("status", "expected"), [("finished", "STATUS_SUCCESS"), ("failed", "STATUS_FAILURE")])
def test_hyperparameters_stand_beside_the_outcome(status, expected, tiny, tmp_path):
    folder = Curves(tmp_path / "run", changed(tiny, method={"roles": {"*.lora_A": "frozen"}})).end(status)
    said = events(folder / "global").summary_metadata
    content = {tag: one.plugin_data.content for tag, one in said.items() if tag.startswith("_hparams_")}
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    values = {name: value for name, value in start.hparams.items()}
    assert values["training.batch_size"].number_value == 16
    assert values["method.options.vpt_deep.num_prompts"].number_value == 3
    assert values["method.roles.*.lora_A"].string_value == "frozen"
    assert values["data.augment"].string_value == '["flip"]'
    assert values["head.temperature"].bool_value is True
    assert not {"name", "data.classes", "federation.silence_s", "encryption"} & set(values)
    columns = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert {one.name for one in columns.hparam_infos} == set(values)
    assert tuple(one.name for one in columns.hparam_infos)[: len(FIRST)] == FIRST
    assert tuple(one.name.tag for one in columns.metric_infos) == OUTCOME
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert api_pb2.Status.Name(end.status) == expected


def test_a_cell_is_as_dark_as_its_share_of_the_row(tiny):
    """Cells touch the right and lower edge, but for a line of one pixel."""
    image = draw_confusion([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 7], [0, 0, 0, 2]], tiny.data)
    corners = image[::-1, ::-1][CELL - 2 :: CELL, CELL - 2 :: CELL][:4, :4][::-1, ::-1]
    white, darkest = np.array((255, 255, 255)), np.array(DARKEST)
    expected = np.array([[white] * 4] * 4, dtype=float)
    expected[0, 0], expected[0, 1] = 255 + 0.75 * (darkest - 255), 255 + 0.25 * (darkest - 255)
    expected[2, 3] = expected[3, 3] = darkest
    assert np.abs(corners - expected).max() <= 0.5
    assert image.dtype == np.uint8
    Image.fromarray(image)


def test_a_better_model_is_darker_and_a_hole_is_white():
    image = draw_cross_site([[1.0, 0.25, None], [0.5, -0.5, 0.0]], ["SRV_adapter.safetensors", "site-1"], NAMES)
    corners = image[::-1, ::-1][CELL - 2 :: CELL, CELL - 2 :: CELL][:2, :3][::-1, ::-1]
    white, darkest = np.array((255, 255, 255)), np.array(DARKEST)
    shares = np.array([[1.0, 0.25, 0.0], [0.5, 0.0, 0.0]])
    assert np.abs(corners - (white + shares[:, :, None] * (darkest - white))).max() <= 0.5


@pytest.mark.parametrize(("classes", "columns"), [(2, 2), (14, 4), (45, 45), (46, 46), (1000, 1000)])
def test_an_image_of_any_number_of_classes(classes, columns):
    task = "multilabel" if columns == 4 else "multiclass"
    data: Any = SimpleNamespace(classes=["a name of many letters, " * 5] * classes, task=task)
    counts = np.ones((classes, columns), dtype=int).tolist()
    height, width, channels = draw_confusion(counts, data).shape
    assert channels == 3
    assert max(height, width) <= (SIDE + 400 if classes < 46 else max(SIDE, classes))
