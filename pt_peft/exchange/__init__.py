"""What travels between sites and server, and how the server combines it. Imports numpy, no torch."""
