"""Finds the CKKS contexts of server and sites, for a job with ``encryption``."""

from collections.abc import Callable
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.security_content_service import LoadResult, SecurityContentService

from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import SERVER_FILE, SITE_FILE, Context, read_file, server_context, site_context
from pt_peft.encryption.encrypted_server import EncryptedServer
from pt_peft.encryption.encrypted_statistics import EncryptedHeadStatistics
from pt_peft.errors import UserError
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.encryption import Encryption
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import When
from pt_peft_flare.run_context import read_site


def site_cipher(encryption: Encryption, exchange: Exchange, fl_ctx: FLContext) -> Cipher:
    """A site's cipher. Raises UserError if tenseal is not installed, or the site has no key that can be used."""
    context = _context(SITE_FILE, site_context, fl_ctx)
    return Cipher(context, Layout(exchange.up(0)), encryption.largest_value)


def encrypted_server(experiment: Experiment, exchange: Exchange, fl_ctx: FLContext) -> EncryptedServer:
    """The server. Raises UserError if tenseal is not installed, or it has no context or one with the secret key."""
    return EncryptedServer(experiment, exchange, _context(SERVER_FILE, server_context, fl_ctx))


def encrypted_statistics(
    experiment: Experiment, exchange: Exchange, when: When, fl_ctx: FLContext
) -> EncryptedHeadStatistics:
    """The server's end of stages of statistics. Raises UserError as `encrypted_server` does."""
    return EncryptedHeadStatistics(experiment, exchange, when, _context(SERVER_FILE, server_context, fl_ctx))


def _context(file_name: str, parse: Callable[[bytes, str], Context], fl_ctx: FLContext) -> Context:
    if folder := read_site(fl_ctx).encryption_contexts:
        path = Path(folder) / file_name
        return parse(read_file(path), str(path))
    # FLARE's reader looks at the provisioner's signature.
    content, found = SecurityContentService.load_content(file_name)
    if found != LoadResult.OK:
        raise UserError(
            f"encryption: file '{file_name}' in the kit's folder 'startup' cannot be used ({found.value}); a kit "
            "provisioned with FLARE's HEBuilder has it, and 'encryption_contexts' of site.json may name another folder."
        )
    return parse(content, file_name)
