"""What the code says of its fields."""

import ast
import inspect
import re
import textwrap


def one_line(docstring: str) -> str:
    """A docstring as one line."""
    return re.sub(r"\s+", " ", inspect.cleandoc(docstring).replace("``", "`"))


def field_docs(record: type) -> dict[str, str]:
    """The docstrings below the fields of a class and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(record.__mro__):
        if base.__module__.split(".")[0] not in ("pt_peft", "benchmark"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                text = ast.literal_eval(after.value) if isinstance(after.value, ast.Constant) else None
                if isinstance(text, str):
                    docs[field.target.id] = text
    return docs
