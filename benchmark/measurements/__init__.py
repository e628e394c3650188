"""Single measurements: each module measures one thing and writes one result file."""
