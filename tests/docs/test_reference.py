"""The generated pages have everything that the code has."""

import json
import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import command_page
import macros
import methods_page
import rules_page
import schema_page
from benchmark.report.docstrings import field_docs
from helpers import ROOT
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.rules import MODEL_RULES, RULES, SITE_RULES
from pt_peft.experiment.site import Site
from pt_peft.model.method import PeftMethod, get_method, method_names
from pt_peft_flare import script

PARAMETERS = {
    "full": "85,798,656",
    "linear_probe": "0",
    "bitfit": "102,912",
    "norm": "38,400",
    "vpt_shallow": "7,680",
    "vpt_deep": "92,160",
    "sba": "2,362,368",
    "lora": "147,456",
    "lora_vpt": "239,616",
}
"""Exchanged parameters for ViT-B/16 without the head, from width 768 and 12 blocks."""
CONFIGS = [record.config for record in map(get_method, method_names()) if isinstance(record, PeftMethod)]


def records(record: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield record
    for value in record.model_fields.values():
        for section in schema_page.sections(value):
            yield from records(section)


@pytest.mark.parametrize("record", [*records(Experiment), *records(Site), *CONFIGS], ids=lambda record: record.__name__)
def test_every_field_is_described(record):
    docs = field_docs(record)
    fields = [name for name in record.model_fields if name != schema_page._discriminator(record)]
    assert [name for name in fields if not docs.get(name) and not schema_page.sections(record.model_fields[name])] == []


@pytest.mark.parametrize(("page", "record"), [(schema_page.experiment, Experiment), (schema_page.site, Site)])
def test_every_field_has_its_place(page, record):
    anchors = set(re.findall(r"\{#([\w.\-]+)", page()))

    def paths(one: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, value in one.model_fields.items():
            sections = schema_page.sections(value)
            if not sections and name != schema_page._discriminator(one):
                yield f"{prefix}{name}"
            for section in sections:
                variant = f"{schema_page._name(section)}." if len(sections) > 1 else ""
                yield from paths(section, f"{prefix}{name}.{variant}")

    wanted = set(paths(record, ""))
    assert len(wanted) > 10
    assert wanted - anchors == set()


def test_a_field_shows_type_range_and_default():
    page = schema_page.experiment()
    found = re.search(r"#training\.batch_size .*?\n\n(.*?)\n", page)
    assert found
    assert found[1] == "integer, 1 to 4,096 · default `32`"


def test_every_command_and_argument_is_there():
    page = command_page.page()
    for name in script.COMMANDS:
        assert f"### `pt-peft {name}` {{#pt-peft-{name}}}" in page
    assert "--no-timing" in page
    assert "--print-completion" in page
    assert "benchmark.measurements.compare" in page


def test_every_rule_is_there():
    lines = [line for line in rules_page.page().splitlines() if line.startswith("| [")]
    assert len(lines) == len(RULES) + len(SITE_RULES) + len(MODEL_RULES)


def test_the_methods_have_their_parameters():
    shown = dict(re.findall(r"^\| \[`(\w+)`\].*?\| ([\d,\u2013]+) \|", methods_page.table(), re.MULTILINE))
    assert shown.keys() == set(method_names())
    assert PARAMETERS.items() <= shown.items()


def test_values_come_from_the_results():
    path = "rows[name=federated lora_vpt].test.pooled.balanced_accuracy"
    assert macros.expand(f'{{{{ result("demo.json", "{path}", ".3f") }}}}', "a page") == "0.842"
    speed = json.loads((ROOT / "benchmark" / "results" / "speed.json").read_bytes())
    minutes = f"{speed['ours']['wall_s'] / 60:.3f}"
    assert macros.expand('{{ result("speed.json", "ours.wall_s / 60", ".3f") }}', "a page") == minutes
    assert macros.expand(r"\{{ kept }}", "a page") == "{{ kept }}"
    with pytest.raises(macros.MacroError, match=r"a page: .*there is no 'nothing'"):
        macros.expand('{{ result("demo.json", "nothing") }}', "a page")
