"""The lead's command line: ``python -m pt_peft_flare job|submit|status|decrypt|contexts``.

Results come by ``nvflare job download``; a job that broke off goes on by ``nvflare job clone``.
"""

import sys

from pt_peft.commands.dispatch import command, dispatch
from pt_peft_flare.commands import contexts, decrypt, job, status, submit

COMMANDS = {"job": job, "submit": submit, "status": status, "decrypt": decrypt, "contexts": contexts}


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    dispatch("pt_peft_flare", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
