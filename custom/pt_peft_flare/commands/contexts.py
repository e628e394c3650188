"""Makes the keys for encrypted jobs in FLARE's simulator.

The files are those of provisioned kits: the sites' file holds the secret key, the server's does not.

Example:
    pt-peft contexts /tmp/keys
"""

import argparse
from pathlib import Path

from pt_peft.encryption.contexts import SERVER_FILE, SITE_FILE, write_pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "folder", type=Path, help="folder to write both files to; set encryption_contexts in site.json to it"
    )


def run(options: argparse.Namespace) -> None:
    """Writes both files. Raises UserError if tenseal is not installed, or one of the files is there already."""
    write_pair(options.folder)
    print(
        f"{options.folder / SITE_FILE} has the secret key of the sites, {options.folder / SERVER_FILE} is the server's"
    )
