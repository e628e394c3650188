"""The reference of `experiment.json` and `site.json`: every field with its type, range, default and docstring."""

import json
import math
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from benchmark.report.docstrings import field_docs
from prose import markdown
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site

INTRODUCTIONS = {
    "experiment.json": """\
One file describes a run completely, and is the same for everybody: it is `app/config/experiment.json` of a job folder. The same
experiment gives the same final adapter. Fields that are not set take the default shown here; unknown fields are refused.""",
    "site.json": """\
A site keeps these settings to itself: `site.json` is in the `local` folder of its FLARE workspace (in the simulator, `local/site.json`
of the workspace that `-w` names, for all sites) and never leaves the site. Fields that are not set take the default shown here; a
simulation needs no file. Relative paths start at the folder of the file.""",
}

WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}


def experiment() -> str:
    """The page of `experiment.json`."""
    return _page("experiment.json", Experiment)


def site() -> str:
    """The page of `site.json`."""
    return _page("site.json", Site)


def fields_of(record: type[BaseModel], prefix: str, level: int, anchor: str | None = None) -> Iterator[str]:
    """The fields of a record that hold plain values: a heading with an anchor, type and default, docstring.

    Args:
        record: the record.
        prefix: its path in the file; empty at the top.
        level: of the headings.
        anchor: what an anchor has in place of `prefix`, where variants share the path.
    """
    docs, schema = field_docs(record), record.model_json_schema()
    for name, field in record.model_fields.items():
        if sections(field) or name == _discriminator(record):
            continue
        path = f"{prefix}.{name}" if prefix else name
        place = f"{anchor}.{name}" if anchor else path
        yield f"{'#' * level} `{path}` {{#{place} .field}}\n"
        default = _default(field)
        yield f"{describe(schema['properties'][name], schema.get('$defs', {}))} · {default}\n{{.type}}\n"
        yield f"{markdown(docs.get(name, ''))}\n"


def sections(field: FieldInfo) -> list[type[BaseModel]]:
    """The records that a field may hold."""
    return list(_records(field.annotation))


def describe(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Type and range of a value, in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " or ".join(describe(one, definitions) for one in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind is None:
        return "any JSON value"
    if kind == "array":
        return _list(schema, definitions)
    if kind == "object":
        return _mapping(schema, definitions)
    return WORDS[kind] + _range(schema) + _length(schema)


def _page(title: str, record: type[BaseModel]) -> str:
    lines = [f"# {title}\n", INTRODUCTIONS[title] + "\n"]
    plain = list(fields_of(record, "", 3))
    if plain:
        lines += ["## Top level {#top-level}\n", *plain]
    lines += _sections(record, "", 2)
    return "\n".join(lines)


def _sections(record: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    docs = field_docs(record)
    for name, field in record.model_fields.items():
        records = sections(field)
        if not records:
            continue
        path = f"{prefix}.{name}" if prefix else name
        yield f"{'#' * level} `{path}` {{#{path}}}\n"
        if name in docs and (
            len(records) > 1 or NoneType in get_args(field.annotation)
        ):  # else the record's own says it
            yield f"{markdown(docs[name])}\n"
        if len(records) > 1:
            yield from _variants(records, path, field, level + 1)
            continue
        yield f"{markdown(records[0].__doc__ or '')}\n"
        if NoneType in get_args(field.annotation):
            yield "default `null`: the section is off\n{.type}\n"
        elif field.is_required():
            yield "**required**\n{.type}\n"
        yield from fields_of(records[0], path, level + 1)
        yield from _sections(records[0], path, level + 1)


def _variants(records: list[type[BaseModel]], path: str, field: FieldInfo, level: int) -> Iterator[str]:
    default = f"`{field.default.name}`" if not field.is_required() else "required"
    names = ", ".join(f"[`{_name(one)}`](#{path}.{_name(one)})" for one in records)
    yield f"`name` chooses one of {names} · default {default}\n{{.type}}\n"
    for record in records:
        variant = f"{path}.{_name(record)}"
        yield f'{"#" * level} `{path}`: `"name": "{_name(record)}"` {{#{variant} .variant}}\n'
        yield f"{markdown(record.__doc__ or '')}\n"
        yield from fields_of(record, path, level + 1, variant)


def _name(record: type[BaseModel]) -> str:
    (name,) = get_args(record.model_fields["name"].annotation)
    return name


def _discriminator(record: type[BaseModel]) -> str | None:
    field = record.model_fields.get("name")
    return (
        "name" if field is not None and all(isinstance(one, str) for one in get_args(field.annotation) or [0]) else None
    )


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _records(argument)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    return f"default `{json.dumps(value, default=list)}`"


def _list(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        (inner,) = {describe(one, definitions) for one in schema["prefixItems"]}
        return f"list of {len(schema['prefixItems'])}: {inner}"
    bounds = _bounds(schema.get("minItems"), schema.get("maxItems"), " entries")
    return f"list{' of' + bounds.removeprefix(',') if bounds else ''}: {describe(schema.get('items', {}), definitions)}"


def _mapping(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    value = describe(schema.get("additionalProperties", {}), definitions)
    if "patternProperties" in schema:
        ((pattern, inner),) = schema["patternProperties"].items()
        return f"object; each name matches `{pattern}`, each value: {describe(inner, definitions)}"
    names = schema.get("propertyNames")
    named = f"each name {describe({'type': 'string', **names}, definitions)}" if names else "each name text"
    return f"object; {named}, each value: {value}"


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    words = []
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    if low is not None:
        words.append(f"at least {_number(low)}")
    if above is not None:
        words.append(f"above {_number(above)}")
    if high is not None:
        words.append(f"at most {_number(high)}")
    if below is not None:
        words.append(f"below {_number(below)}")
    return "".join(f", {word}" for word in words[:1]) + "".join(f" and {word}" for word in words[1:])


def _length(schema: dict[str, Any]) -> str:
    if "pattern" in schema:
        return f" that matches `{schema['pattern']}`"
    return _bounds(schema.get("minLength"), schema.get("maxLength"), " characters")


def _bounds(low: int | None, high: int | None, unit: str) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f", {_number(low)} or more{unit}"
    return f", {_number(low or 0)} to {_number(high)}{unit}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value > 1e9 and math.log2(value).is_integer():
        return f"2^{int(math.log2(value))}"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
