"""The commands of ``python -m pt_peft``, one module each. torch and what needs it are imported when a command runs."""
