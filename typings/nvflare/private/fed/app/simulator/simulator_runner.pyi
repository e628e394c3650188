from typing import Any

# The modules of these names, which we replace.
subprocess: Any
time: Any
