"""Ways to write payloads as an axis of a suite, and the table of what they cost."""

import json

import yaml

from benchmark.cells import Grid
from benchmark.jobs import override
from benchmark.payloads import main
from benchmark.presets import demo
from benchmark.suite import Suite

SMALL = {
    "extends": "payloads",
    "name": "small",
    "methods": ["lora"],
    "data": {"lesions": {"data": {"images_per_site": {"train": 16, "val": 8, "test": 32}}}},
    "seeds": [0],
    "aggregations": ["float32", "int8"],
    "defaults": {"federation": {"rounds": 2}},
}


def test_payloads_are_an_axis_of_a_suite():
    cells = list(Grid(Suite.read("payloads"), {"embedded": None}, None).runs([]))
    found = {cell.axes["aggregation"]: cell.experiment.payload for cell in cells}
    assert len(cells) == len(found) == 8 and not found["float32"].changes
    assert found["top-1"].up.fraction == 0.01 and found["top-1"].down.name == "int8"
    assert not found["int8-no-memory"].up.remembers and found["int8"].up.remembers


def test_a_field_of_a_job():
    experiment = override(demo("lora")[0], ["payload.up.name=int8", "payload.down.name=bfloat16"])
    assert experiment.payload.up.error_feedback and experiment.payload.down.name == "bfloat16"


def test_the_table(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    out = tmp_path / "out.json"
    assert main(["--suite", str(tmp_path / "small.yaml"), "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    plain, rounded = (record["payloads"][name] for name in ("float32", "int8"))
    d, blocks, rank, classes = 96, 6, 4, 4  # of the embedded backbone
    factors, head = blocks * (rank * d + 3 * d * rank), d * classes + classes
    assert plain["bytes_up"] == plain["bytes_down"] == 4 * (factors + head)
    assert rounded["bytes_up"] == rounded["bytes_down"] == factors + head + 4 * (blocks * 2 * rank + classes + 1)
    assert len(rounded["runs"]) == 1 and rounded["runs"][0]["balanced_accuracy"] == rounded["balanced_accuracy"]
    assert record["provenance"]["commit"] and rounded["payload"]["up"] == {"name": "int8", "error_feedback": True}
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith(f"| int8 | {rounded['bytes_up']:,} | {rounded['bytes_up'] / plain['bytes_up']:.3f} |")
