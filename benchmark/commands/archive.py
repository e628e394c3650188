"""Puts the results of suites into an archive that a repository such as Zenodo can give a DOI to.

It has the result files, compressed, the suites, a data card made from them, metadata, licence, citation and checksums.
The same results give the same archive, byte for byte.

Example:
    python -m benchmark archive ham10000 --out ham10000.zip
"""

import argparse
import sys
from pathlib import Path

from benchmark.commands.report import result_file
from pt_peft.errors import UserError
from pt_peft.files import check_place, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "suites", nargs="+", help="names of suites with results in benchmark/results, or paths of .jsonl files"
    )
    parser.add_argument("--out", type=Path, required=True, help="file that ends in .zip, or a new folder")
    parser.add_argument(
        "--licence",
        metavar="SPDX",
        help="what the archive is published under (default: the licence of the images whose labels it has, or the "
        "repository's for generated ones)",
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError if results are refused, or the archive cannot be written; nothing is written then."""
    from benchmark.report.archive import archive, dirty, read_archived, to_zip

    out: Path = options.out
    zipped = out.suffix == ".zip"
    if zipped:
        check_place(out)
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out: {out} is there already; a new or empty folder, or a .zip file, would be right.")
    given = [read_archived(result_file(name)) for name in options.suites]
    files = archive(given, options.licence)
    if changed := dirty(given):
        print(
            f"warning: made by code with changes that are in no commit: {len(changed)} runs, the first '{changed[0]}'. "
            "The data card says so.",
            file=sys.stderr,
        )
    if zipped:
        write_atomically(out, to_zip(files))
    else:
        for name, content in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out / name, content)
    print(f"{out}: {len(files)} files, {sum(map(len, files.values())):,} bytes")
