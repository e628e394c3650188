"""Makes the embedded backbone, from generated images alone."""
