"""Decrypt an adapter that a server has kept, with the key of a site."""

import argparse
from pathlib import Path

from pt_peft.encryption.decrypted_adapter import decrypt_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("adapter", type=Path, help="encrypted_adapter.safetensors, or the best one, of a job's results")
    parser.add_argument(
        "--context", type=Path, required=True, help="client_context.tenseal of a site's kit (folder startup)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the adapter, as jobs without encryption leave it")


def run(options: argparse.Namespace) -> None:
    """Writes the adapter. Raises UserError if the file is no encrypted adapter, or was encrypted by another key."""
    decrypt_file(options.adapter, options.context, options.out)
    print(options.out)
