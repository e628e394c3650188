"""A connection to a running federation, as one of its people."""

import argparse
import contextlib
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from pt_peft.errors import UserError

CONNECT_S = 15.0


def add_kit(parser: argparse.ArgumentParser) -> None:
    """Declares the argument that `connected` takes."""
    parser.add_argument("--kit", required=True, help="your start-up kit, as `nvflare provision` made it for you")


@contextmanager
def connected(kit: str) -> Iterator[Session]:
    """FLARE's own API, as the person whose start-up kit is in the folder `kit`.

    Raises:
        UserError: if that is no kit of a person, or the server does not answer; also for what FLARE refuses meanwhile.
    """
    config = Path(kit) / "startup" / "fed_admin.json"
    try:
        user = json.loads(config.read_text(encoding="utf-8"))["admin"]["username"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--kit: {kit} is not the start-up kit of a lead or an admin ({config}: {error}).") from None
    try:
        logging.disable(logging.ERROR)  # FLARE's log and progress are not this command's answer
        with contextlib.redirect_stdout(io.StringIO()):
            session = new_secure_session(user, str(Path(kit).resolve()), timeout=CONNECT_S)
    except Exception as error:
        raise UserError(f"--kit: {kit}: the server does not answer {user} ({error}).") from None
    try:
        yield session
    except UserError:
        raise
    except Exception as error:  # FLARE's many; each says what was wrong
        raise UserError(f"the server refuses: {error}.") from None
    finally:
        session.close()
