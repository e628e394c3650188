from enum import StrEnum

class FrameworkType(StrEnum):
    PYTORCH = "pytorch"
