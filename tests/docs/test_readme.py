"""README.md is short, its links lead somewhere, and its numbers are those of the results."""

import json
import re

import demo_figure
from helpers import ROOT
from macros import NOTHING

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = json.loads((ROOT / "benchmark" / "results" / "demo.json").read_text(encoding="utf-8"))
ROWS = {
    "LoRA + deep prompts": "federated lora_vpt",
    "linear probe": "federated linear_probe",
    "full fine-tuning": "federated full",
    "pooled (all images in one place)": "pooled",
}


def test_it_is_a_page_long():
    assert README.count("\n") <= 150


def test_its_links_lead_somewhere():
    targets = [one.partition("#")[0] for one in re.findall(r"\]\((?!https?:)([^)\s]+)\)", README)]
    assert targets
    assert [one for one in targets if not (ROOT / one).exists()] == []


def test_its_table_is_the_demos_result():
    rows = {row["name"]: row for row in DEMO["rows"]}
    shown = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", README, re.MULTILINE))
    for name, row in ((name, rows[key]) for name, key in ROWS.items()):
        sent = f"{row['exchanged_parameters']:,}" if "exchanged_parameters" in row else NOTHING
        assert shown[name] == f"{sent} | {row['test']['pooled']['balanced_accuracy']:.3f}"
    alone = [
        f"{row['test']['pooled']['balanced_accuracy']:.3f}" for name, row in rows.items() if name.startswith("local")
    ]
    assert shown["one site alone"] == f"{NOTHING} | {', '.join(alone)}"


def test_its_figure_is_drawn_from_the_demos_result():
    assert demo_figure.FIGURE.read_text(encoding="utf-8") == demo_figure.draw()
