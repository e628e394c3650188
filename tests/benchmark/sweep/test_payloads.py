"""Ways to write payloads as an axis of a suite, and the bytes that a run counts of them."""

from dataclasses import replace
from pathlib import Path

from benchmark.oracle.reference import load_sites, make_trainer
from benchmark.sweep.cells import Grid
from benchmark.sweep.engines import run_reference
from benchmark.sweep.suite import Suite
from pt_peft.presets import demo, override


def test_payloads_are_an_axis_of_a_suite():
    cells = list(Grid(Suite.read("payloads"), {"embedded": None}, Path()).runs([]))
    found = {cell.axes.variant: cell.experiment.payload for cell in cells}
    assert len(cells) == len(found) == 8
    assert not found["float32"].changes
    assert found["top-1"].up.model_dump()["fraction"] == 0.01
    assert found["top-1"].down.name == "int8"
    assert not found["int8-no-memory"].up.remembers
    assert found["int8"].up.remembers


def test_a_field_of_a_job():
    experiment = override(demo("lora")[0], ["payload.up.name=int8", "payload.down.name=bfloat16"])
    assert experiment.payload.up.model_dump()["error_feedback"]
    assert experiment.payload.down.name == "bfloat16"


def test_bytes_of_a_run():
    """Against counts by hand."""
    d, blocks, rank, classes = 96, 6, 4, 4  # of the embedded backbone
    values = blocks * (rank * d + 3 * d * rank) + d * classes + classes
    scales = blocks * 2 * rank + classes + 1
    small = {"train": 16, "val": 8, "test": 8}
    for cell in Grid(Suite.read("payloads"), {"embedded": None}, Path()).runs([]):
        sent = {"float32": 4 * values, "int8": values + 4 * scales}.get(cell.axes.variant)
        if sent is None:
            continue
        fields = [
            f"data.images_per_site={small}".replace("'", '"'),
            "federation.rounds=2",
            "method.name=lora",
            "method.options={}",
        ]
        cell = replace(cell, experiment=override(cell.experiment, fields))
        names = list(cell.experiment.federation.sites)
        outcome = run_reference(
            cell, make_trainer(cell.experiment, cell.site), load_sites(cell.experiment, cell.site, names), Path()
        )
        assert [(one.bytes_in, one.bytes_out) for one in outcome.rounds] == [(sent * len(names),) * 2] * 2
