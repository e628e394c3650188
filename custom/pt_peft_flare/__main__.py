"""The command line of a federation's lead and of its sites: ``python -m pt_peft_flare COMMAND``.

``nvflare job download`` fetches the results of a job; ``nvflare job clone`` resumes one that was interrupted.
"""

import sys

from pt_peft.commands.dispatch import Command, command, dispatch, parser
from pt_peft_flare.commands import contexts, decrypt, job, ledger, show_job, status

COMMANDS: dict[str, Command] = {
    "job": job,
    "show-job": show_job,
    "status": status,
    "ledger": ledger,
    "decrypt": decrypt,
    "contexts": contexts,
}


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs the command that `arguments` name."""
    dispatch(parser("python -m pt_peft_flare", __doc__, COMMANDS), arguments)


if __name__ == "__main__":
    sys.exit(main())
