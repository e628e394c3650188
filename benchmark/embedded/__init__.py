"""Pre-trains the embedded backbone on generated images alone."""
