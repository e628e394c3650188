"""What commands make of a result."""

import argparse
import json

import pytest

from benchmark.measurements.results import finish, markdown_table, write_result


def test_a_result_is_a_file_and_a_table_or_json(tmp_path, capsys):
    result = {"a": [1.5, None]}
    finish(argparse.Namespace(out=tmp_path / "a.json", json=False), result, "a table")
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1.5,\n  null\n ]\n}\n'
    finish(argparse.Namespace(out=None, json=True), result, "a table")
    assert capsys.readouterr().out == "a table\n" + json.dumps(result, indent=1) + "\n"


def test_a_number_that_is_none_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path / "a.json", {"a": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("texts", "rule"), [(None, "| --- | --- |"), (1, "| --- | ---: |"), (0, "| ---: | ---: |")])
def test_a_table_says_which_columns_are_numbers(texts, rule):
    assert markdown_table(["a", "b"], [["x", "1"]], texts).splitlines() == ["| a | b |", rule, "| x | 1 |"]
