"""What all commands do with a mistake of the user's."""

import functools
import sys
from collections.abc import Callable

from pt_peft.errors import UserError


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], int]:
    """Makes `main` return an exit code: 0, 1 after printing what was wrong to standard error, or 130 if interrupted."""

    @functools.wraps(main)
    def with_exit_code(arguments: list[str] | None = None) -> int:
        try:
            main(arguments)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return with_exit_code
