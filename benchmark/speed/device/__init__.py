"""The one command that measures this project on a GPU, and what carries it to a machine without a network.

It runs in a clone or in an unpacked pack, where what the machine lacks lies beside the code.
"""

from benchmark.speed.device.packed import use_packages

use_packages()  # before anything else is imported
