"""Single measurements, each with a result file of its own."""
