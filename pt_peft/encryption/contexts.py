"""Keys and parameters, in files as FLARE's ``HEBuilder`` writes them into kits. Imports tenseal only where needed.

The files are tenseal's protocol buffers, which its own C++ code reads; nothing is unpickled.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

from pt_peft.errors import UserError
from pt_peft.exchange.ciphertext_layout import DEGREE, PRIME_BITS, SCALE

if TYPE_CHECKING:
    import tenseal

SITE_FILE = "client_context.tenseal"
"""The sites' file, with the secret key."""
SERVER_FILE = "server_context.tenseal"
"""The server's file, without the secret key."""
MOST_BYTES = 4 * 2**20
"""Most bytes of such a file; FLARE's have 0.7 MB."""

Context: TypeAlias = "tenseal.Context"
"""tenseal's keys and parameters."""


def import_tenseal() -> ModuleType:
    """Imports tenseal. Raises UserError if it is not installed."""
    try:
        import tenseal
    except ImportError as error:
        raise UserError(
            f"experiment: field 'encryption' needs the package tenseal, which cannot be imported here ({error}); "
            "`pip install tenseal` would be right."
        ) from None
    return tenseal


def new_context() -> Context:
    """Makes a context with a new secret key, as FLARE's builder does: even encrypting needs the secret key."""
    tenseal = import_tenseal()
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=DEGREE,
        coeff_mod_bit_sizes=list(PRIME_BITS),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = SCALE
    return context


def site_context(content: bytes, source: str) -> Context:
    """Reads a site's context.

    Args:
        content: of the file.
        source: the file's name, for errors.

    Raises:
        UserError: if the content is damaged, has no secret key, or has other parameters than `new_context`.
    """
    context = _read(content, source)
    if not context.is_private():
        raise UserError(
            f"{source}: has no secret key, so that this site can neither encrypt nor decrypt; sites need {SITE_FILE}."
        )
    return context


def server_context(content: bytes, source: str) -> Context:
    """Reads the server's context as `site_context` does. Raises UserError also if it has the secret key."""
    context = _read(content, source)
    if context.is_private():
        raise UserError(
            f"{source}: has the sites' secret key, which the server must not have; take it away from here and leave "
            f"{SERVER_FILE}."
        )
    return context


def read_file(path: Path) -> bytes:
    """Reads a context's file, at most one byte more than `MOST_BYTES`. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    return content


def write_pair(folder: Path) -> None:
    """Writes both files, with a new key, into `folder`: for trials without FLARE's provisioning.

    Raises:
        UserError: if one of them exists.
        OSError: if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = new_context()
    for name, private in ((SITE_FILE, True), (SERVER_FILE, False)):
        content = context.serialize(
            save_public_key=private, save_secret_key=private, save_galois_keys=False, save_relin_keys=False
        )
        try:
            with open(folder / name, "xb", opener=_for_the_owner) as file:
                file.write(content)
        except FileExistsError:
            raise UserError(
                f"{folder / name}: is there already; what was encrypted by its key could not be read without it."
            ) from None


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(content: bytes, source: str) -> Context:
    tenseal = import_tenseal()
    if len(content) > MOST_BYTES:
        raise UserError(f"{source}: has more than {MOST_BYTES} bytes, so that it is no context of tenseal's.")
    try:
        context = tenseal.context_from(content)
        scale = context.global_scale
        parameters = context.seal_context().data.key_parms_id()
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{source}: is damaged, or no context of tenseal's for CKKS ({error}).") from None
    # The identity is a hash of scheme, degree and primes.
    if scale != SCALE or parameters != new_context().seal_context().data.key_parms_id():
        raise UserError(
            f"{source}: has other parameters than CKKS with degree {DEGREE}, primes of "
            f"{', '.join(map(str, PRIME_BITS))} bits and a scale of {SCALE:.0f}, which are the defaults of FLARE's "
            "HEBuilder."
        )
    return context
