"""Tables as text: which encoding and separator a file has, where its header is, and its cells by column.

Nothing is guessed that could be wrong in silence. A separator is right if it parts the names of the columns that are
asked for. Text that is not Unicode is read as Windows-1252, and that is said where it matters.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from pt_peft.data.names import clean
from pt_peft.data.problems import Report, some_of, stop
from pt_peft.errors import UserError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""The first bytes of .xlsx and .ods, and of .xls."""
_SEPARATORS = (",", ";", "\t", "|")
_TITLE_ROWS = 20
"""Rows above the header at most."""

Rows = list[tuple[int, dict[str, str]]]
"""The number of each row's last line, and the row's cells by column."""


def read_rows(path: Path, columns: Mapping[str, str], report: Report = stop) -> Rows:
    """The rows below the header.

    Cells and names of columns are cleaned (`pt_peft.data.names.clean`). Rows and columns without any text are left
    out, and so is what stands above the header: the first row that has all of `columns`.

    Args:
        path: a table in UTF-8, UTF-16 or Windows-1252, parted by commas, semicolons, tabs or ``|``.
        columns: names that the header must have, each with an explanation for the error.
        report: takes warnings where Windows-1252 is assumed for cells of `columns`, and of rows that end after these.

    Raises:
        UserError: if the table cannot be read, has no rows, rows that are longer than the header or end before one of
            `columns`, or one of `columns` twice or not at all.
    """
    columns = {clean(name): why for name, why in columns.items()}
    text, sure = _decoded(path)
    separator, above, header = _header(path, text, columns)
    least = 1 + max(header.index(name) for name in columns)
    rows: Rows = []
    odd: list[str] = []
    short: list[str] = []
    for line, cells in islice(_parsed(path, text, separator), above + 1, None):
        if any(cells):
            rows.append((line, {name: cell for name, cell in zip(header, cells, strict=False) if name}))
            if len(cells) < least or any(cells[len(header) :]):
                odd.append(f"line {line}")
            elif len(cells) < len(header):
                short.append(f"line {line}")
    if not rows:
        raise UserError(f"{path}: has no rows; it should list one image in each row below the header.")
    if odd:
        raise UserError(f"{path}: {some_of(odd, len(rows), 'rows')} do not have as many fields as the header.")
    if short:
        report(
            "short rows",
            f"{path}: {some_of(short, len(rows), 'rows')} end after the columns that are used, as Excel leaves off "
            "empty cells at the end; what is missing is taken to be empty.",
            "warning",
        )
    if not sure:
        first = [(line, next((row[name] for name in columns if not row[name].isascii()), "")) for line, row in rows]
        foreign = [f"line {line} {cell!r}" for line, cell in first if cell]
        if foreign:
            report(
                "encoding",
                f"{path}: is not in UTF-8 and is read as Windows-1252, which {some_of(foreign, len(rows), 'rows')} "
                "depend on; saved in UTF-8 it could not be mistaken.",
                "warning",
            )
    return rows


def _decoded(path: Path) -> tuple[str, bool]:
    """The text of a file, and whether its encoding is sure. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a table ({error.strerror or error}).") from None
    if content.startswith(_WORKBOOKS):
        raise UserError(f"{path}: is a workbook of a spreadsheet; saved as CSV in UTF-8 it would be right.")
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content[:2]:  # a header begins with a letter, whose other byte is zero
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    for attempt in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = content.decode(attempt)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, attempt != "cp1252"
    raise UserError(f"{path}: cannot be read as a table: it is no text in UTF-8, UTF-16 or Windows-1252.")


def _parsed(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the cleaned cells of each row. Raises UserError."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            yield reader.line_num, [clean(cell) for cell in cells]
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a CSV table (line {reader.line_num}: {error}).") from None


def _header(path: Path, text: str, columns: Mapping[str, str]) -> tuple[str, int, list[str]]:
    """The separator, the number of rows above the header, and the header's cells.

    Raises:
        UserError: if no separator parts the names of all `columns`, or one of these is there twice.
    """
    most: list[str] = []
    unreadable: UserError | None = None
    for separator in _SEPARATORS:
        try:
            above, names = _search(islice(_parsed(path, text, separator), _TITLE_ROWS + 1), columns)
        except UserError as error:
            unreadable = error
            continue
        if above is None:
            most = max(most, [name for name in names if name], key=len)
        elif twice := [name for name in columns if names.count(name) > 1]:
            raise UserError(f"{path}: has two columns '{twice[0]}'.")
        else:
            return separator, above, names
    if unreadable and not most:
        raise unreadable
    missing = next((name for name in columns if name not in most), next(iter(columns)))
    raise UserError(
        f"{path}: has no column '{missing}'{columns[missing]}; its columns are {', '.join(most) or 'none'}."
    )


def _search(rows: Iterable[tuple[int, list[str]]], columns: Mapping[str, str]) -> tuple[int | None, list[str]]:
    """The header of a table, after the number of rows above it; or None, and the row of most cells."""
    longest: list[str] = []
    for above, (_, cells) in enumerate(rows):
        if columns.keys() <= set(cells):
            return above, cells
        longest = max(longest, cells, key=len)
    return None, longest
