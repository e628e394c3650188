"""Runs the command in its arguments, and kills it and its children when standard input ends.

A parent that holds the other end of that pipe may itself be killed: nothing is left running.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Runs the command; returns its exit code."""
    process = subprocess.Popen(sys.argv[1:], start_new_session=True, stdin=subprocess.DEVNULL)

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def watch() -> None:
        sys.stdin.buffer.read()
        end()

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    end()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # Not sys.exit: the thread still reads standard input, and Python would wait for its lock.
    os._exit(main())
