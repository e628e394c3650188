"""Make keys for trials of encryption in the simulator, in the same files as provisioned kits have."""

import argparse
from pathlib import Path

from pt_peft.encryption.contexts import SERVER_FILE, SITE_FILE, write_pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folder", type=Path, help="for both files; name it as encryption_contexts in site.json")


def run(options: argparse.Namespace) -> None:
    """Writes both files. Raises UserError if tenseal is not installed, or one of the files is there already."""
    write_pair(options.folder)
    print(
        f"{options.folder / SITE_FILE} has the secret key of the sites, {options.folder / SERVER_FILE} is the server's"
    )
