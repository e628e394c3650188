"""docs/deploy/security.md names the tests that show what it says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "deploy" / "security.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ")]
BEFORE_PRIVACY = TEXT.partition("\n## Differential privacy\n")[0].splitlines()
THREATS = [row for row in ROWS if row in BEFORE_PRIVACY and row.count(" |") == 5 and not row.startswith("| party")]


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "test"), sorted({found for row in ROWS for found in NAMED.findall(row)}))
def test_each_test_is_there(file, test):
    assert any(test in functions(path) for path in (ROOT / "tests").rglob(file)), f"tests/**/{file} has no {test}"


def test_each_row_has_five_cells_and_names_its_tests():
    assert len(THREATS) > 25
    for row in THREATS:
        party, goal, _means, stops, left = (cell.strip() for cell in row.strip("|").split(" |"))
        assert party, row
        assert goal or "clock" in party, row
        assert NAMED.search(stops) or left, row
