"""The subcommands of ``python -m pt_peft_flare``."""
