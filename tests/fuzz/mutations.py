"""Hypothesis strategies for damaged files."""

import copy

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "..", "../../etc/passwd", "/", "~", "\0", "a" * 5000, "1e400", -1, 0, 10**30]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def _places(value: object, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@st.composite
def changed_json(draw: st.DrawFn, original: dict) -> object:
    """`original` with one to three fields replaced, left out or added anywhere in it."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(value)))
        if not place:
            if draw(st.integers(0, 20)) == 0:
                return draw(VALUES)
            continue
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "delete", "add"]))
        if action == "delete":
            del parent[place[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=10))] = draw(VALUES)
        else:
            parent[place[-1]] = draw(VALUES)
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with some bytes replaced, left out or added, or its end cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        # Mistakes matter most in the header.
        at = draw(st.integers(0, min(len(content), 400)) | st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        action = draw(st.sampled_from(["replace", "delete", "insert", "cut"]))
        if action == "cut":
            del content[at:]
        elif action == "delete":
            del content[at : at + length]
        else:
            content[at : at + (length if action == "replace" else 0)] = draw(
                st.binary(min_size=length, max_size=length)
            )
    return bytes(content)
