from typing import Any

# The module of this name, which we replace.
time: Any
