"""The commands of ``python -m pt_peft``, one module each; a command imports torch only when it runs."""
