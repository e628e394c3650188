from typing import Any

class MetaStatusValue:
    NOT_AUTHORIZED: str

class StreamChannel:
    UPLOAD: str

def make_meta(status: str, info: str = "") -> dict[str, Any]: ...
