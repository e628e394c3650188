"""Which package may import which, from the contracts of import-linter in pyproject.toml."""
