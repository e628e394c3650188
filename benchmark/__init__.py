"""Commands run from a clone: pre-training, job writing, reference loop and reports."""
