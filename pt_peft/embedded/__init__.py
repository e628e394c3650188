"""The backbone that the package brings along: its weights and their description."""
