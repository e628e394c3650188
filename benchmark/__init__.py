"""Writing jobs, running them and reporting on them; used from a clone."""
