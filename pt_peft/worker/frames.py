"""The messages on the socket between a worker and its user: a JSON object and named tensors, never a pickle."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, TypedDict

import safetensors.numpy

from pt_peft.errors import ReasonedError
from pt_peft.exchange.tensors import Tensors, safetensors_bytes

Frame = tuple[dict[str, Any], Tensors]
"""One message: its JSON object and its tensors."""


class ErrorFields(TypedDict):
    """An error as it travels, under ``error`` of a reply."""

    kind: str
    """Name of its class."""
    arguments: list[Any]
    """What its class is made from."""
    reason: str
    """Its reason as JSON."""


_LENGTHS = struct.Struct(">QQ")


def send(connection: socket.socket, message: Mapping[str, object], tensors: Tensors | None = None) -> None:
    """Sends `message` (JSON-serialisable) and `tensors`. Raises OSError if the other side is gone."""
    text = json.dumps(message).encode()
    blob = safetensors_bytes(tensors or {})
    connection.sendall(_LENGTHS.pack(len(text), len(blob)) + text + blob)


def receive(connection: socket.socket) -> Frame:
    """Waits for one message. Raises EOFError if the other side is gone, TimeoutError by the socket's timeout."""
    text_length, blob_length = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    message = json.loads(_exactly(connection, text_length))
    return message, safetensors.numpy.load(_exactly(connection, blob_length))


def error_fields(error: ReasonedError) -> ErrorFields:
    """Describes `error`, so that the other side can raise it again."""
    return {"kind": type(error).__name__, "arguments": [*error.args], "reason": error.reason.model_dump_json()}


def _exactly(connection: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        chunk = connection.recv(min(length - len(content), 1 << 20))
        if not chunk:
            raise EOFError("the other side closed the connection")
        content += chunk
    return bytes(content)
