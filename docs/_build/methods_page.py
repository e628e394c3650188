"""The methods: the table that ``pt-peft methods`` prints, and a section for each from its record and docstring."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pt_peft.methods
from prose import markdown, row
from pt_peft.code_key import code_key
from pt_peft.commands.methods import list_methods
from pt_peft.model.method import Hybrid, PeftMethod, get_method, method_names
from schema_page import fields_of

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "docs-cache"

BACKBONE = "vit_base_patch16_224"
CLASSES = 2

INTRODUCTION = f"""\
`method.name` of the experiment names a method, or several joined by `+`; `method.options` has their fields by name:
`{{"lora": {{"rank": 8}}}}`. The parameters are those that a site sends in a round for ViT-B/16 at 224 px with {CLASSES} classes, at the
defaults; `pt-peft methods --backbone NAME` lists them for any backbone.
"""

FLAGS = {
    "identity_at_start": "the logits are unchanged at the start",
    "trains_backbone": "trains the backbone's own tensors: the server needs the weights too",
    "starts_from_backbone": "its start is computed from the backbone: the server needs the weights too",
    "job": "has a job folder in `jobs/`",
}


def page() -> str:
    """The page."""
    lines = ["# Methods\n", INTRODUCTION, table("") + "\n"]
    for name in method_names():
        lines += _section(get_method(name))
    return "\n".join(lines)


def table(page: str = "../reference/methods.md") -> str:
    """One row a method; `page` is where the links lead to."""
    lines = [row("method", "trains", "parameters", "kB a round", "paper"), row("---", "---", "---:", "---:", "---")]
    for found in _rows():
        link = f"[`{found['method']}`]({page}#{found['method']})"
        if "reason" in found:
            lines.append(row(link, found["summary"], "–", "–", found["paper"]))
        else:
            kilobytes = f"{found['bytes_a_round'] / 1000:,.1f}"
            lines.append(row(link, found["summary"], f"{found['parameters']:,}", kilobytes, found["paper"]))
    note = (
        "Parameters: without the head. kB a round: what a site sends, and receives, as float32, head included "
        f"({CLASSES} classes, ViT-B/16, 224 px)."
    )
    return "\n".join([*lines, "", note])


def _section(record: PeftMethod | Hybrid) -> Iterator[str]:
    yield f"## `{record.name}` {{#{record.name}}}\n"
    if isinstance(record, Hybrid):
        parts = " and ".join(f"[`{part}`](#{part})" for part in record.parts)
        yield f"{record.summary}: {parts} together.\n\nSource: {record.paper}.\n"
        return
    yield f"{markdown(_module(record).__doc__ or '')}\n"
    true = [words for flag, words in FLAGS.items() if getattr(record, flag)]
    if record.merge is not None:
        true.append("can be merged into the backbone")
    if record.round_keys is not None:
        true.append("trains other tensors in each round")
    yield f"Source: {record.paper}. Step size to start from: `{record.learning_rate:g}`.\n"
    yield "".join(f"* {words}\n" for words in true)
    yield from fields_of(record.config, "", 4, record.name)


def _module(record: PeftMethod) -> ModuleType:
    """The file of a method, which is named as the method."""
    module = getattr(pt_peft.methods, record.name)
    assert isinstance(module, ModuleType)
    return module


def _rows() -> list[dict[str, Any]]:
    """What `list_methods` finds, which takes half a minute and is kept for as long as the code is the same."""
    code = code_key("pt_peft.commands.methods", "pt_peft.methods")
    file = CACHE / f"methods-{BACKBONE}-{CLASSES}-{code[:16]}.json"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(list_methods(BACKBONE, None, CLASSES)), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))
