"""Reading a JSON file into a pydantic model, with errors a user can act on."""

import difflib
import json
import math
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pt_peft.errors import UserError


class Strict(BaseModel):
    """A record that refuses unknown fields and does not coerce: ``"3"`` is not 3."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], value: object, source: str) -> Model:
    """Validates `value` (decoded JSON) as `model`.

    Args:
        source: what the value was read from, for the error.

    Raises:
        UserError: naming the first offending field, the value seen and what would be right, and how many more.
    """
    try:
        # Through JSON so that strict mode takes a list for a tuple, as JSON has no tuples.
        parsed = model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        errors = error.errors()
        first = errors[0]
        field = ".".join(map(str, _place(value, first["loc"])))
        if first["type"] == "extra_forbidden":
            known = _fields_at(model, first["loc"][:-1])
            message = f"field '{field}' is unknown{_suggestion(str(first['loc'][-1]), known)}"
        elif first["type"] == "missing":
            message = f"field '{field}' is missing"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            shown, named = _shown(first["input"]), f"field '{field}'" if field else "the top level"
            if first["type"] == "value_error" and not first["loc"]:
                message = reason  # it names the fields, see `pt_peft.experiment.rules`
            elif first["type"] == "value_error" and isinstance(first["input"], dict) and shown.endswith("…"):
                message = f"{named}: {reason}"  # which names what is wrong of all that
            else:
                message = f"{named} is {shown}: {reason[0].lower() + reason[1:]}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        stop = "" if (message + more).endswith("?") else "."
        raise UserError(f"{source}: {_one_line(message)}{more}{stop}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source}: is not plain JSON ({error}).") from None
    if (field := _not_finite(value)) is not None:
        raise UserError(f"{source}: field '{_one_line(field)}' is not a finite number.")
    return parsed


def read(model: type[Model], path: Path) -> Model:
    """Reads the JSON file `path` as `model`.

    Raises:
        UserError: if the file is not there, is not JSON, or is not a valid `model`.
    """
    return parse(model, read_json(path), str(path))


def read_json(path: Path) -> object:
    """Decodes the JSON file `path`.

    Raises:
        UserError: if the file is not there or is not JSON.
    """
    try:
        # utf-8-sig: editors on Windows begin a file with a byte order mark.
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}).") from None


def _not_finite(value: object, field: str = "") -> str | None:
    """The path of a number in decoded JSON that is NaN or infinite, where a schema leaves anything open."""
    if isinstance(value, float) and not math.isfinite(value):
        return field
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (_not_finite(child, f"{field}.{name}".lstrip(".")) for name, child in children)
    return next((one for one in found if one is not None), None)


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


def _place(value: object, location: tuple) -> list:
    """`location` without the names of the variants of a section, which pydantic puts in and no file has."""
    place = []
    for part in location:
        if isinstance(value, dict) and part not in value and part == value.get("name"):
            continue
        place.append(part)
        children = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        value = children.get(part)
    return place


def _one_line(text: str) -> str:
    """`text` with escapes for whatever cannot be printed: names of fields are anything that JSON allows."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known fields are {', '.join(known)}" if known else ""


def _fields_at(model: type[BaseModel], location: tuple) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        nested = field.annotation if field else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return []
        model = nested
    return list(model.model_fields)
