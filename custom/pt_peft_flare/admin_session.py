"""A connection to a running federation, for one of its people."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pt_peft.errors import UserError

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

CONNECT_S = 15.0


def add_kit(parser: argparse.ArgumentParser) -> None:
    """Declares the argument that `connected` takes."""
    parser.add_argument("--kit", required=True, help="folder of your start-up kit, made by `nvflare provision`")


@contextmanager
def connected(kit: str) -> Generator[Session]:
    """A session of FLARE's API for the person whose start-up kit is in the folder `kit`. FLARE logs nothing meanwhile.

    Raises:
        UserError: if that is no kit of a person, or the server does not answer, or refuses what is asked of it.
    """
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    user = _user_of(Path(kit))
    with _flare_logs_nothing():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                session = new_secure_session(user, str(Path(kit).resolve()), timeout=CONNECT_S)
        except Exception as error:
            raise UserError(f"--kit: {kit}: the server does not answer {user} ({error}).") from None
        try:
            yield session
        except UserError:
            raise
        except Exception as error:  # FLARE has many; each says what was wrong
            raise UserError(f"the server refuses: {error}.") from None
        finally:
            session.close()


def _user_of(kit: Path) -> str:
    config = kit / "startup" / "fed_admin.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["admin"]["username"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--kit: {kit} is not the start-up kit of a lead or an admin ({config}: {error}).") from None


@contextmanager
def _flare_logs_nothing() -> Generator[None]:
    """Keeps FLARE's log, which is not the command's answer, off the console."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
