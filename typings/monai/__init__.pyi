# MONAI re-exports its names without `__all__` and leaves most of them untyped: these are the ones we use, as of 1.6.
