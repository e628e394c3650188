from typing import Any

class MsgHeader:
    RETURN_CODE: str

class ReturnCode:
    OK: str

class Message:
    body: Any
    def __init__(self, topic: str, body: object) -> None: ...
    def get_header(self, key: str, default: object = None) -> Any: ...

def ok_reply(topic: str | None = None, body: object = None) -> Message: ...
def error_reply(err: str) -> Message: ...
