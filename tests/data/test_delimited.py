"""Tables as spreadsheets, hospitals and data sets write them are read as what they say, or refused with a sentence."""

import codecs

import pytest

from pt_peft.data.delimited import read_rows
from pt_peft.errors import UserError

RIGHT = [{"file": "a.png", "label": "naïf"}, {"file": "b.png", "label": "non, ou oui"}]


def rows(tmp_path, content: str | bytes, encoding="utf-8", columns=("file", "label"), report=None) -> list[dict]:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return [row for _, row in read_rows(path, dict.fromkeys(columns, ""), *([report] if report else []))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_separators_and_ends_of_lines(tmp_path, encoding, separator, end):
    lines = [f"file{separator}label", f"a.png{separator}naïf", f'b.png{separator}"non, ou oui"']
    assert rows(tmp_path, end.join(lines) + end, encoding) == RIGHT


def test_a_mark_of_utf_16_of_either_order(tmp_path):
    text = "file;label\na.png;naïf\n"
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        assert rows(tmp_path, mark + text.encode(encoding)) == RIGHT[:1]


@pytest.mark.parametrize(
    "text",
    [
        "Export 2026-01-03,\n,\nfile,label\na.png,x\n",  # a title and an empty row
        "PACS; Ward 3\n\nfile;label\na.png;x\n",
        "file,label\n\na.png,x\n,\n,,\n",  # empty rows
        "file,,label,\na.png,,x,\n",  # empty columns
        ",file,label\n0,a.png,x\n",  # an index without a name
        "\ufeff file , label \n a.png , x\u00a0\n",  # blanks
        'file, "label"\n"a.png", "x"\n',
    ],
)
def test_what_stands_around_the_cells(tmp_path, text):
    assert rows(tmp_path, text) == [{"file": "a.png", "label": "x"}]


def test_cells_keep_line_ends_and_decimal_commas(tmp_path):
    text = 'file;label;mm\na.png;"first\nsecond";0,5\nb.png;x;1,25\n'
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert read_rows(path, {"file": "", "label": ""}) == [
        (3, {"file": "a.png", "label": "first\nsecond", "mm": "0,5"}),
        (4, {"file": "b.png", "label": "x", "mm": "1,25"}),
    ]


def test_composed_and_decomposed_letters_are_the_same(tmp_path):
    assert rows(tmp_path, "file,lábel\na.png,é\n", columns=["lábel"]) == [{"file": "a.png", "lábel": "é"}]
    assert rows(tmp_path, "file,la\u0301bel\na.png,e\u0301\n", columns=["lábel"]) == [{"file": "a.png", "lábel": "é"}]


def test_windows_1252_is_said_only_where_it_matters(tmp_path):
    said = []
    text = "file,label,doctor\na.png,x,Müller\né.png,naïf,Weiß\n"
    found = rows(tmp_path, text, "cp1252", report=lambda *problem: said.append(problem))
    assert found[0]["doctor"] == "Müller"
    ((kind, message, level),) = said
    assert (kind, level) == ("encoding", "warning")
    assert "t.csv: is not in UTF-8 and is read as Windows-1252" in message
    assert "1 of 2 rows (first: line 3 'é.png')" in message
    rows(tmp_path, text.replace("é", "e"), "cp1252", columns=["file"], report=lambda *problem: said.append(problem))
    rows(tmp_path, text, "utf-8", report=lambda *problem: said.append(problem))
    assert len(said) == 1
    # A name of a column that is misread is not found: it needs no warning.
    rows(tmp_path, "file,Läsion\na.png,x\n", "cp1252", ("file", "Läsion"), lambda *problem: said.append(problem))
    assert len(said) == 1


def test_columns_that_are_not_used_may_be_odd(tmp_path):
    """Two of one name; and Excel writes no separators of empty cells at the end, below its sixteenth row."""
    said = []
    text = "file,label,note,note\na.png,x,1,2\nb.png,x\nc.png,x,1\n"
    found = rows(tmp_path, text, report=lambda *problem: said.append(problem))
    assert [(row["file"], row["label"]) for row in found] == [("a.png", "x"), ("b.png", "x"), ("c.png", "x")]
    ((kind, message, level),) = said
    assert (kind, level) == ("short rows", "warning")
    assert "2 of 3 rows (first: line 3, line 4) end after the columns that are used" in message
    with pytest.raises(UserError, match=r"2 of 3 rows \(first: line 3, line 4\) do not have as many fields"):
        rows(tmp_path, "file,note,label\na.png,1,x\nb.png,1\nc.png,1\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label,file\na,b,c\n", r"has two columns 'file'"),
        ("file,label, file \na,b,c\n", r"has two columns 'file'"),
        (
            "file,label\na.png,x,y\nb.png\nc.png,x\n",
            r"2 of 3 rows \(first: line 2, line 3\) do not have as many fields",
        ),
        ("file,label\na.png,0,5\n", r"1 of 1 rows \(first: line 2\) do not have as many fields as the header"),
        ("name;label\na.png;x\n", r"has no column 'file'; its columns are name, label\."),
        ("", r"its columns are none"),
        ("file,label\n", r"has no rows"),
        ('file,label\na.png,"x\nb.png,y\n', r"cannot be read as a CSV table \(line 3: unexpected end of data\)"),
        (b"PK\x03\x04rest", r"is a workbook of a spreadsheet; saved as CSV in UTF-8 it would be right"),
        (b"file,label\na.png,\x81\n", r"it is no text in UTF-8, UTF-16 or Windows-1252"),
        (b"file,label\na.png,\0\n", r"it is no text in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"t\.csv: .*{message}"):
        rows(tmp_path, content)
