"""Decrypts the adapter that a server has kept of an encrypted job, with a site's key.

Example:
    pt-peft decrypt encrypted_adapter.safetensors --context client_context.tenseal --out adapter.safetensors
"""

import argparse
from pathlib import Path

from pt_peft.encryption.decrypted_adapter import decrypt_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "adapter",
        type=Path,
        help="encrypted_adapter.safetensors or encrypted_best_adapter.safetensors of a job's results",
    )
    parser.add_argument(
        "--context", type=Path, required=True, help="client_context.tenseal of a site's kit (in its folder startup)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="adapter file to write, as jobs without encryption write it"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the adapter. Raises UserError if the file is no encrypted adapter, or was encrypted by another key."""
    decrypt_file(options.adapter, options.context, options.out)
    print(options.out)
