"""The backbone that the package brings along: its weights, and how they were made."""
