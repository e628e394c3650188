"""Runs the command in its arguments, and kills it and all that it started when standard input ends: a process that holds the
other end of that pipe need not live to clean up.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Returns the command's exit code."""
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
    # Not sys.exit: the thread still reads, and Python would wait for its lock on standard input.
    os._exit(main())
