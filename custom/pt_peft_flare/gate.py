"""What the processes of a provisioned server take from outside: what a peer may say to whom, and how much of it.

FLARE knows who a peer is (mTLS), and lets every peer say what its own parts say to one another: end a job, act for the
server, fire any event in a job's process, order another site about. Here a message from outside passes if it is one of
`OF_SITES` or `OF_PEOPLE`. Its size is checked before anything is read or kept, by what it says of itself and by what
has come. What cannot be read, at which FLARE ends the job's process, is answered as a failure.

`admit` stands in the server's parent process, through which all messages from outside come; `Inbox` in it and in each
job's process.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.fl_constant import ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.fuel.f3.cellnet import cell as cell_module
from nvflare.fuel.f3.cellnet import core_cell as core_cell_module
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import (
    CellChannel,
    CellChannelTopic,
    Encoding,
    MessageHeaderKey,
    MessagePropKey,
    MessageType,
)
from nvflare.fuel.f3.cellnet.defs import ReturnCode as CellReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply as make_cell_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.download_service import OBJ_DOWNLOADER_CHANNEL
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_ACK_TOPIC,
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    STREAM_ERROR_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)
from nvflare.fuel.f3.streaming.stream_types import BlobSizeError, StreamError
from nvflare.fuel.hci.proto import StreamChannel
from nvflare.fuel.utils.admin_name_utils import is_valid_admin_client_name
from nvflare.fuel.utils.fobs import lobs
from nvflare.private.stream_runner import TOPIC_STREAM_ABORT, TOPIC_STREAM_REQUEST

from pt_peft_flare.flare_internals import GATE

log = logging.getLogger(__name__)

FILES = (CellChannel.HCI, StreamChannel.UPLOAD, OBJ_DOWNLOADER_CHANNEL)
"""Channels of people's commands, and of the files that they send and fetch."""
Topics = Mapping[str, tuple[str, ...]]
"""Topics by channel that a request may have; a ``*`` at the end stands for any rest."""
REGISTRATION = (
    CellChannelTopic.Challenge,
    CellChannelTopic.Register,
    CellChannelTopic.Quit,
    CellChannelTopic.HEART_BEAT,
)
OF_ALL: Topics = {
    CellChannel.SERVER_MAIN: REGISTRATION,
    CellChannel.CELLNET: (CellChannelTopic.Bye,),
    CellChannel.RETURN_ONLY: ("*",),
    "credential_manager": ("key_exchange",),
}
OF_SITES: Topics = {
    **OF_ALL,
    CellChannel.SERVER_MAIN: (*REGISTRATION, CellChannelTopic.REPORT_JOB_FAILURE),
    CellChannel.SERVER_COMMAND: (ServerCommandNames.GET_TASK, ServerCommandNames.SUBMIT_UPDATE),
    CellChannel.AUX_COMMUNICATION: ("__sync_runner__", "__job_heartbeat__", "__task_check__", "pt_peft.*"),
}
OF_PEOPLE: Topics = {
    **OF_ALL,
    **dict.fromkeys(FILES, ("*",)),
    CellChannel.AUX_COMMUNICATION: (TOPIC_STREAM_REQUEST, TOPIC_STREAM_ABORT),
}
"""FLARE checks what each person has a right to."""
FRAME_BYTES = 8 << 20
"""Most bytes of one message from outside; larger ones come in pieces of a megabyte. gRPC refuses them by the kits."""
SMALL_BYTES = 64 << 10
"""Most bytes of a message of FLARE's own: a request for work, a sign of life."""
PARENT_BYTES = 4 << 20
"""The same in the parent process, which sites send their errors and settings to when a person asks for them."""
NO_CERTIFICATE = "N/A"
"""What FLARE takes for the name of a peer without a certificate, on a line with TLS alone."""
FATAL = (ReturnCode.RUN_MISMATCH, ReturnCode.TASK_UNKNOWN, ReturnCode.UNSAFE_JOB)
"""Return codes of a result at which FLARE ends the job."""
QUIET_S = 1.0
"""Seconds between two lines in the log about messages of one peer."""
STREAMS = 100
"""Most messages of a site to one process that have begun and not ended; ours have one or two at a time."""
STALE_S = 300.0
"""FLARE gives a message up whose next piece has not come for so long."""


def from_outside(message: Message) -> bool:
    """Whether a message comes from a site or a person, not from the server's own processes."""
    return _root(message.get_header(MessageHeaderKey.ORIGIN, "")) != FQCN.ROOT_SERVER


def admit(message: Message) -> Message | None:
    """Looks at a message that has come to the server's parent process, before FLARE does anything with it.

    Returns:
        None for a message that may go on, else the reply that FLARE takes as the end of it.
    """
    certified, peer = message.get_prop(MessagePropKey.COMMON_NAME), message.get_prop(MessagePropKey.ENDPOINT)
    if not certified:
        return None  # from a job's process on this machine
    if certified != NO_CERTIFICATE and _root(peer.name) == FQCN.ROOT_SERVER:
        # From one in a container or on a compute node: only with the server's own key does FLARE let it have that name.
        return None
    problem = _problem(message)
    if problem is None:
        return None
    _warn(certified, problem)
    return make_cell_reply(CellReturnCode.AUTHENTICATION_ERROR, problem)


def _problem(message: Message) -> str | None:
    """What is wrong with a message from outside."""
    origin, peer = message.get_header(MessageHeaderKey.ORIGIN, ""), message.get_prop(MessagePropKey.ENDPOINT)
    if _root(origin) != _root(peer.name):
        return f"it says that it comes from {_shown(origin)}"
    destination = message.get_header(MessageHeaderKey.DESTINATION, "")
    if _root(destination) != FQCN.ROOT_SERVER:
        return f"it is meant for {_shown(destination)}, and only the server may be spoken to"
    if (nbytes := _nbytes(message)) > FRAME_BYTES:
        return f"it has {nbytes} bytes, more than {FRAME_BYTES}"
    channel, topic = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if channel == STREAM_CHANNEL:
        # At this word FLARE ends the server's process of a job.
        if message.get_header(StreamHeaderKey.ERROR_TYPE) == BlobSizeError.__name__:
            message.set_header(StreamHeaderKey.ERROR_TYPE, StreamError.__name__)
        if topic in (STREAM_ACK_TOPIC, STREAM_ERROR_TOPIC):
            return None
        if topic != STREAM_DATA_TOPIC:
            return f"topic {_shown(topic)} of streams"
        channel, topic = message.get_header(StreamHeaderKey.CHANNEL), message.get_header(StreamHeaderKey.TOPIC)
    elif message.get_header(MessageHeaderKey.MSG_TYPE) != MessageType.REQ:
        return None  # an answer, which FLARE takes only if it waits for one
    allowed = OF_PEOPLE if is_valid_admin_client_name(_root(origin)) else OF_SITES
    return None if _listed(allowed, channel, topic) else f"channel {_shown(channel)}, topic {_shown(topic)}"


def _listed(allowed: Topics, channel: object, topic: object) -> bool:
    topics = allowed.get(channel, ()) if isinstance(channel, str) else ()
    return isinstance(topic, str) and any(
        topic == one or (one.endswith("*") and topic.startswith(one[:-1])) for one in topics
    )


class Inbox:
    """Bounds what a process takes in of messages from outside.

    A message has a body, which becomes Python objects of up to seventy times its size, and may have one datum, the
    tensors, which `wire` reads within bounds of its own.
    """

    def __init__(self, body: int = SMALL_BYTES, refused: Callable[[str, str], object] | None = None):
        """Bounds messages without tensors until `expect` is called.

        Args:
            body: most bytes of a message's body.
            refused: is told the name of a site and why its message was refused.
        """
        self._body = self._result_body = body
        self._result = 0
        self._refused = refused
        self._name = ""
        self._closed = False
        self._reject: Callable[[Message, StreamError], None] = _nothing
        self._lock = threading.Lock()
        self._open: dict[str, dict[int, tuple[float, int]]] = {}
        """By site and stream that has not ended: when its last piece came, and the bytes so far."""

    def expect(self, body: int, data: int) -> None:
        """Sets how large a site's result may be: bytes of its body, and of its tensors as they travel."""
        self._result_body, self._result = body, data

    def watch(self, cell: Cell) -> None:
        """Bounds all that comes to `cell`, and what this process reads. Raises FlareChanged for another FLARE."""
        GATE.require()
        self._name = cell.core_cell.my_info.fqcn
        self._reject = cell.byte_receiver.reject
        cell.core_cell.add_incoming_filter("*", "*", self.admit)
        original = cell_module.decode_payload

        def decode(message: Message, encoding_key: str = MessageHeaderKey.PAYLOAD_ENCODING, **options: Any) -> None:
            self._decode(original, message, encoding_key, **options)

        cell_module.decode_payload = core_cell_module.decode_payload = decode

    def close(self) -> None:
        """Takes nothing any more, and gives up what has begun: FLARE's process would end only when all has come."""
        self._closed = True
        for task in list(RxTask.rx_task_map.values()):
            if _root(task.origin) != FQCN.ROOT_SERVER and not task.completed:
                task.stop(StreamError("the job is over"), notify=False)

    def admit(self, message: Message) -> Message | None:
        """Looks at a piece of a message that has come for this process, as `gate.admit` does, before FLARE keeps it."""
        kind = (message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC))
        is_own = from_outside(message) and message.get_header(MessageHeaderKey.DESTINATION) == self._name
        if not is_own or kind != (STREAM_CHANNEL, STREAM_DATA_TOPIC):
            return None
        if message.get_header(StreamHeaderKey.CHANNEL) in FILES or (problem := self._problem(message)) is None:
            return None
        self._tell(message, problem)
        if message.get_header(StreamHeaderKey.SEQUENCE) == 0:
            self._reject(message, StreamError(problem))  # the site would else wait for minutes
        return make_cell_reply(CellReturnCode.INVALID_REQUEST, problem)

    def _problem(self, message: Message) -> str | None:
        """What is wrong with the size of a piece of a message."""
        most = self._result_body + self._result if _is_result(message) else self._body
        if self._closed and _is_result(message):
            return "the job is over"
        size, nbytes = message.get_header(StreamHeaderKey.SIZE, 0), _nbytes(message)
        if not isinstance(size, int) or size < 0 or size > most:
            return f"a message of {_shown(size)} bytes; at most {most} would be right"
        if nbytes and message.get_header(StreamHeaderKey.SEQUENCE) == 0 and not size:
            return "a message that does not say how many bytes it has"
        site = _root(message.get_header(MessageHeaderKey.ORIGIN))
        stream = message.get_header(StreamHeaderKey.STREAM_ID)
        if not isinstance(stream, int):
            return f"stream {_shown(stream)}; a number would be right"
        now = time.monotonic()
        with self._lock:
            pieces = self._open.setdefault(site, {})
            if message.get_header(StreamHeaderKey.DATA_TYPE) == StreamDataType.FINAL:
                pieces.pop(stream, None)
                return None
            for old in [key for key, (last, _) in pieces.items() if now - last > STALE_S]:
                del pieces[old]
            if stream not in pieces and len(pieces) >= STREAMS:
                return f"messages that have begun and not ended are {len(pieces)} already; no more would be right"
            pieces[stream] = (now, nbytes + pieces.get(stream, (now, 0))[1])
            total, most = sum(one for _, one in pieces.values()), 2 * (self._result_body + self._result) + FRAME_BYTES
            if total <= most:
                return None
            pieces.pop(stream)
        return f"messages that have begun and not ended have {total} bytes together; at most {most} would be right"

    def _decode(self, original: Callable[..., None], message: Message, encoding_key: str, **options: Any) -> None:
        if message.get_header(encoding_key) != Encoding.FOBS or not from_outside(message):
            original(message, encoding_key, **options)
            return
        reading = False
        try:
            content = _joined(message.payload)
            _check_sections(content, *((self._result_body, self._result) if _is_result(message) else (self._body, 0)))
            message.payload, reading = content, True
            original(message, encoding_key, **options)
            if _is_result(message):
                _soften(message.payload)
        except Exception as error:  # from bytes that anybody may have made
            # FLARE's own words may be those of the message.
            self._tell(message, f"it cannot be read ({type(error).__name__})" if reading else str(error))
            message.payload = make_reply(ReturnCode.BAD_REQUEST_DATA)
            message.payload.set_peer_context(FLContext())  # without which FLARE fails, and the site tries again
            with contextlib.suppress(KeyError):
                message.remove_header(encoding_key)

    def _tell(self, message: Message, problem: str) -> None:
        site = _root(message.get_header(MessageHeaderKey.ORIGIN))
        _warn(site, problem)
        if self._refused and _is_result(message):
            self._refused(site, f"its result was refused: {problem}")


def _warn(peer: str, problem: str) -> None:
    """Says that a message was refused, once in a while: a peer may send as many as it likes."""
    now = time.monotonic()
    with _warned_lock:
        last, silent = _warned.get(peer, (-QUIET_S, 0))
        if now - last < QUIET_S:
            _warned[peer] = (last, silent + 1)
            return
        _warned[peer] = (now, 0)
    more = f" ({silent} more before this one)" if silent else ""
    log.warning("a message from %s is refused: %s%s", _shown(peer), problem, more)


_warned: dict[str, tuple[float, int]] = {}
"""By peer: when it was last said, and how many messages were refused since in silence."""
_warned_lock = threading.Lock()


def _nothing(message: Message, error: StreamError) -> None:
    pass


def _is_result(message: Message) -> bool:
    """Whether a message is, or says that it is, the result of a task."""
    return any(
        message.get_header(keys.CHANNEL) == CellChannel.SERVER_COMMAND
        and message.get_header(keys.TOPIC) == ServerCommandNames.SUBMIT_UPDATE
        for keys in (StreamHeaderKey, MessageHeaderKey)  # in pieces, and in one
    )


def _soften(result: object) -> None:
    """Makes any word of a failure one that costs the site its round: at some FLARE ends the job for all."""
    if isinstance(result, Shareable) and result.get_return_code() in FATAL:
        result.set_return_code(ReturnCode.EXECUTION_EXCEPTION)


def _check_sections(content: bytes, body: int, data: int) -> None:
    """Raises ValueError unless `content` is a body within `body` bytes, and tensors or nothing within `data` bytes."""
    start, found = 0, 0
    while start < len(content):
        if start + lobs.HEADER_LEN > len(content):
            raise ValueError("a section without a whole header")
        marker, kind, size = lobs.HEADER_STRUCT.unpack_from(content, start)
        start += lobs.HEADER_LEN + size
        found += 1
        # Other data would be written to a file, or fetched from another process that the message names.
        right = lobs.MARKER_DATUM_BLOB if found > 1 else lobs.MARKER_MAIN
        if marker != right or kind or found > 2:
            raise ValueError(f"a section of another kind ({marker}, {kind}) than one body and one blob")
        if size > (most := data if found > 1 else body):
            raise ValueError(f"a section of {size} bytes; at most {most} would be right")


def _joined(payload: list[bytes] | bytes | None) -> bytes:
    return b"".join(_parts(payload))


def _nbytes(message: Message) -> int:
    return sum(map(len, _parts(message.payload)))


def _parts(payload: list[bytes] | bytes | None) -> list[bytes]:
    """The pieces of a payload, as FLARE keeps it."""
    return payload if isinstance(payload, list) else [payload or b""]


def _root(name: object) -> str:
    """The site's or the server's name at the head of FLARE's name of a process."""
    return name.partition(".")[0] if isinstance(name, str) else ""


def _shown(value: object) -> str:
    return repr(value)[:100]
