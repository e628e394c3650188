"""Reads JSON files into pydantic models, with errors that a user can act on."""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from pt_peft.errors import UserError


class Strict(BaseModel):
    """A record that refuses unknown fields and does not coerce: ``"3"`` is not 3."""

    MOVED: ClassVar[Mapping[str, str]] = {}
    """What became of fields that the record no longer has; goes on from the field's name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]
"""Where pydantic found an error: names of fields and indices, from the outside in."""


def parse(model: type[Model], value: object, source: str) -> Model:
    """Validates decoded JSON as a record.

    Args:
        model: the record's class.
        value: the decoded JSON.
        source: what it was read from, for errors.

    Raises:
        UserError: naming the first offending field (an unknown one before one that is missing), the value seen and what
            would be right, and the number of further offending fields.
    """
    try:
        text = json.dumps(value)
        content: JsonValue = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source}: is not plain JSON ({error}).") from None
    try:
        # From text, so that strict mode takes a list for a tuple: JSON has no tuples.
        parsed = model.model_validate_json(text)
    except ValidationError as error:
        found = [one for one in error.errors() if not _only_seems_short(one)]
        places = [(one, ".".join(str(part) for part in _path_in_file(content, one["loc"]))) for one in found]
        # What is missing may be what is written otherwise.
        unknown = (one for one in places if one[0]["type"] == "extra_forbidden")
        first, field = next(unknown, places[0]) if found[0]["type"] == "missing" else places[0]
        same = [one for one, place in places if place == field]  # one for each kind of value that it may be
        if first["type"] == "extra_forbidden":
            record, name = _record_at(model, first["loc"][:-1]), str(first["loc"][-1])
            if record and name in record.MOVED:
                message = f"field '{field}' {record.MOVED[name]}"
            else:
                message = f"field '{field}' is unknown{_suggestion(name, list(record.model_fields) if record else [])}"
        elif first["type"] == "missing":
            message = f"field '{field}' is missing"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            shown, named = _shown(first["input"]), f"field '{field}'" if field else "the top level"
            if first["type"] == "value_error" and not first["loc"]:
                message = reason  # it names the fields, see `pt_peft.experiment.rules`
            elif first["type"] == "value_error" and isinstance(first["input"], dict) and shown.endswith("…"):
                message = f"{named}: {reason}"  # the reason names what is wrong in so large a value
            else:
                reasons = dict.fromkeys(one["msg"].removeprefix("Value error, ") for one in same)
                message = f"{named} is {shown}: {', or '.join(one[0].lower() + one[1:] for one in reasons)}"
        more = f" (and {len(places) - len(same)} more)" if len(places) > len(same) else ""
        stop = "" if (message + more).endswith("?") else "."
        raise UserError(f"{source}: {_one_line(message).removesuffix('.')}{more}{stop}", field or None) from None
    if (field := _not_finite(content)) is not None:
        raise UserError(f"{source}: field '{_one_line(field)}' is not a finite number.", field)
    return parsed


def read(model: type[Model], path: str | Path) -> Model:
    """Reads the JSON file `path` as `model`.

    Raises:
        UserError: if the file does not exist, is not JSON, or is not a valid `model`.
    """
    return parse(model, read_json(Path(path)), str(path))


def read_json(path: Path) -> JsonValue:
    """Decodes the JSON file `path`.

    Raises:
        UserError: if the file does not exist or is not JSON.
    """
    try:
        # utf-8-sig: editors on Windows begin a file with a byte order mark.
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not in UTF-8 (byte {error.start}); saved in UTF-8 it would be right.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}).") from None


def _not_finite(value: JsonValue, field: str = "") -> str | None:
    """The path of the first number that is NaN or infinite, where a schema allows any JSON; None if all are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return field
    found = (_not_finite(child, f"{field}.{name}".lstrip(".")) for name, child in _children(value).items())
    return next((one for one in found if one is not None), None)


def _children(value: JsonValue) -> Mapping[str | int, JsonValue]:
    """The values in an object by name, or in a list by index; none for anything else."""
    if isinstance(value, dict):
        return {**value}
    return dict(enumerate(value)) if isinstance(value, list) else {}


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field '{_one_line(twice)}' is there twice")
    return fields


def _shown(value: object, limit: int = 200) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[:limit] + "…"


def _path_in_file(value: JsonValue, location: Location) -> list[str | int]:
    """`location` without the names of a value's variants, which pydantic inserts and no file has."""
    path: list[str | int] = []
    for part in location:
        if isinstance(value, dict) and part not in value and part == value.get("name"):
            continue
        if path and not isinstance(value, list if isinstance(part, int) else dict):
            break
        path.append(part)
        value = _children(value).get(part)
    return path


def _only_seems_short(error: ErrorDetails) -> bool:
    """Whether a list is long enough, and pydantic does not count those of its values that are wrong."""
    return error["type"] == "too_short" and len(error["input"]) >= error.get("ctx", {})["min_length"]


def _one_line(text: str) -> str:
    """Escapes what cannot be printed: a field's name in JSON may be any text."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known fields are {', '.join(known)}" if known else ""


def _record_at(model: type[BaseModel], location: Location) -> type[Strict] | None:
    """The class of the nested record at `location`; None where it is not one class."""
    for part in location:
        field = model.model_fields.get(str(part))
        nested = field.annotation if field else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return None
        model = nested
    return model if issubclass(model, Strict) else None
