# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false
"""What the server's processes take from outside."""

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.fuel.f3.cellnet import cell as cell_module
from nvflare.fuel.f3.cellnet import core_cell as core_cell_module
from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding, MessageHeaderKey, MessagePropKey, MessageType
from nvflare.fuel.f3.cellnet.identity import CellIdentityResolver
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    STREAM_ERROR_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import lobs
from nvflare.private.fed.server.server_runner import ServerRunner
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

from pt_peft_flare import gate
from pt_peft_flare.gate import Inbox, admit

JOB = "0c40f2d4-0000-4000-8000-000000000000"
PERSON = f"_admin_{uuid.uuid4()}"


def message(
    channel, topic, *, origin=f"hospital-1.{JOB}", peer=None, to="server", payload: Any = b"", kind=None, **headers: Any
):
    """As the server's parent process receives it."""
    one = Message(
        {
            MessageHeaderKey.MSG_TYPE: kind or MessageType.REQ,
            MessageHeaderKey.ORIGIN: origin,
            MessageHeaderKey.DESTINATION: to,
            MessageHeaderKey.CHANNEL: channel,
            MessageHeaderKey.TOPIC: topic,
            **headers,
        },
        payload,
    )
    one.set_prop(MessagePropKey.COMMON_NAME, "hospital-1")
    one.set_prop(MessagePropKey.ENDPOINT, SimpleNamespace(name=peer or origin))
    return one


def piece(channel="server_command", topic="submit_update", *, to=f"server.{JOB}", payload=b"", **fields):
    headers = {getattr(StreamHeaderKey, name.upper()): value for name, value in fields.items()}
    headers |= {StreamHeaderKey.CHANNEL: channel, StreamHeaderKey.TOPIC: topic}
    return message(STREAM_CHANNEL, STREAM_DATA_TOPIC, to=to, payload=payload, **headers)


@pytest.mark.parametrize(
    "one",
    [
        message("task", "register", origin="hospital-1"),
        message("task", "heart_beat", origin="hospital-1"),
        message("task", "report_job_failure", origin="hospital-1"),
        piece(topic="get_task"),
        piece(),
        piece("aux_communication", "__task_check__"),
        piece("aux_communication", "pt_peft.anything"),
        piece("return_only", "server_command:get_task"),
        message("cellnet.channel", "bye"),
        message("admin", "anything", kind=MessageType.REPLY),
        message("task", "register", origin=PERSON),
        message("hci_channel", "command", origin=PERSON),
        piece("hci.upload", "folder", to="server"),
    ],
)
def test_what_honest_sites_and_people_say_passes(one):
    if one.headers.get(StreamHeaderKey.CHANNEL) == "hci.upload":
        one.headers[MessageHeaderKey.ORIGIN] = PERSON
        one.set_prop(MessagePropKey.ENDPOINT, SimpleNamespace(name=PERSON))
    assert admit(one) is None


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (piece(topic="abort"), "topic 'abort'"),
        (piece(topic="app_command"), "topic 'app_command'"),
        (message("server_command", "abort"), "topic 'abort'"),
        (piece(topic="abort", error_type="BlobSizeError"), "topic 'abort'"),
        (piece(topic="abort", error_msg="no"), "topic 'abort'"),
        (message("server_parent_listener", "get_clients"), "channel 'server_parent_listener'"),
        (message("_net_manager", "stop"), "channel '_net_manager'"),
        (message("cellnet.channel", "bulk"), "topic 'bulk'"),
        (piece("aux_communication", "fed.event"), "topic 'fed.event'"),
        (piece("aux_communication", "ObjectStreamer.Request"), "topic 'ObjectStreamer.Request'"),
        (piece("hci.upload", "folder"), "channel 'hci.upload'"),
        (message("client_command", "abort", to=f"hospital-2.{JOB}"), "meant for 'hospital-2."),
        (message("admin", "x", to="hospital-2", kind=MessageType.REPLY), "meant for 'hospital-2'"),
        (message("task", "heart_beat", origin="server", peer="hospital-1"), "comes from 'server'"),
        (message("task", "heart_beat", origin="hospital-2", peer="hospital-1"), "comes from 'hospital-2'"),
        (message("task", "heart_beat", payload=bytes(9 << 20)), "it has 9437184 bytes"),
        (piece(payload=bytes(9 << 20)), "it has 9437184 bytes"),
        (message(["task"], {"a": 1}), "channel ['task']"),
        (message("server_command", "submit_update", origin=PERSON), "topic 'submit_update'"),
    ],
)
def test_nothing_else_passes(one, problem):
    reply = admit(one)
    assert reply
    assert problem in reply.headers[MessageHeaderKey.ERROR]


def test_what_is_refused_does_not_fill_the_log(caplog, monkeypatch):
    monkeypatch.setattr(gate, "_warned", {})
    for _ in range(1000):
        admit(piece(topic="abort"))
    assert [record.getMessage() for record in caplog.records] == [
        "a message from 'hospital-1' is refused: channel 'server_command', topic 'abort'"
    ]
    monkeypatch.setattr(gate, "QUIET_S", 0)
    admit(piece(topic="abort"))
    assert caplog.records[-1].getMessage().endswith("topic 'abort' (999 more before this one)")


def test_the_servers_own_processes_are_not_asked():
    one = message("server_parent_listener", "get_clients", origin=f"server.{JOB}")
    one.set_prop(MessagePropKey.COMMON_NAME, None)
    assert admit(one) is None


def test_the_servers_own_process_elsewhere_speaks_to_sites_and_a_site_under_its_name_does_not():
    """In a container or on a compute node it comes with the server's certificate; FLARE compares it with the name."""
    one = message("client_command", "check", origin=f"server.{JOB}", to=f"hospital-1.{JOB}")
    one.set_prop(MessagePropKey.COMMON_NAME, "server")
    assert admit(one) is None
    one.set_prop(MessagePropKey.COMMON_NAME, "N/A")
    assert admit(one) is not None, "nobody has compared anything"
    flare = CellIdentityResolver("server", {"server": "flare.example"})
    flare.require_match(f"server.{JOB}", "flare.example", "a line")
    for name in (f"server.{JOB}", "server.hospital-1"):
        with pytest.raises(ValueError, match=r"requires identity 'flare\.example'"):
            flare.require_match(name, "hospital-1", "a line")


def test_a_site_cannot_end_the_job_by_a_word_of_sizes():
    one = message(STREAM_CHANNEL, STREAM_ERROR_TOPIC, **{StreamHeaderKey.ERROR_TYPE: "BlobSizeError"})
    assert admit(one) is None
    assert one.headers[StreamHeaderKey.ERROR_TYPE] == "StreamError"


@pytest.fixture
def cell(monkeypatch):
    """A job's process at the server; what FLARE reads by is put back afterwards."""
    nvflare_fobs_initialize()
    for module in (cell_module, core_cell_module):
        monkeypatch.setattr(module, "decode_payload", module.decode_payload)
    filters = []
    add = lambda channel, topic, cb: filters.append((channel, topic, cb))  # noqa: E731
    core = SimpleNamespace(my_info=SimpleNamespace(fqcn=f"server.{JOB}"), add_incoming_filter=add)
    rejected = []
    receiver = SimpleNamespace(reject=lambda one, error: rejected.append(str(error)))
    return SimpleNamespace(core_cell=core, byte_receiver=receiver, filters=filters, rejected=rejected)


@pytest.fixture
def refused():
    return []


@pytest.fixture
def inbox(cell, refused):
    inbox = Inbox(refused=lambda site, reason: refused.append((site, reason)))
    inbox.watch(cell)
    inbox.expect(body=1000, data=5000)
    assert cell.filters == [("*", "*", inbox.admit)]
    return inbox


def passes(inbox, one):
    return inbox.admit(one) is None


def test_sizes_are_checked_before_anything_is_kept(inbox, cell, refused):
    assert passes(inbox, piece(size=6000, sequence=0, stream_id=1, payload=bytes(10)))
    assert not passes(inbox, piece(size=6001, sequence=0, stream_id=2))
    assert refused == [("hospital-1", "its result was refused: a message of 6001 bytes; at most 6000 would be right")]
    assert not passes(inbox, piece(size=-1, sequence=0, stream_id=3))
    assert not passes(inbox, piece(size="many", sequence=0, stream_id=4))
    assert not passes(inbox, piece(size=0, sequence=0, stream_id=5, payload=b"x"))
    assert not passes(inbox, piece("aux_communication", "__task_check__", size=65 << 10, sequence=0, stream_id=6))
    assert not passes(inbox, piece("aux_communication", "submit_update", size=65 << 10, sequence=0, stream_id=7))
    assert len(refused) == 4  # and not of the last two, which are no results
    assert len(cell.rejected) == 6  # so that nobody waits for an answer


def test_messages_that_never_end_are_bounded_together(inbox):
    def begins(stream):
        return passes(inbox, piece(sequence=1, stream_id=stream, payload=bytes(1 << 20)))

    assert [stream for stream in range(20) if begins(stream)] == list(range(8))
    assert passes(inbox, piece(sequence=2, stream_id=0, data_type=StreamDataType.FINAL))
    assert begins(21)
    assert not begins(22)


def test_messages_without_a_byte_that_never_end_are_bounded_in_number(inbox, monkeypatch):
    def begins(stream):
        return passes(inbox, piece(sequence=0, size=0, stream_id=stream))

    assert [stream for stream in range(2 * gate.STREAMS) if begins(stream)] == list(range(gate.STREAMS))
    assert begins(0), "a message that has begun goes on"
    other = piece(sequence=0, size=0, stream_id=1)
    other.headers[MessageHeaderKey.ORIGIN] = f"hospital-2.{JOB}"
    assert passes(inbox, other), "another site's are others"
    assert passes(inbox, piece(sequence=1, stream_id=0, data_type=StreamDataType.FINAL))
    assert begins(1000)
    assert not begins(1001)
    later = gate.time.monotonic() + gate.STALE_S + 1
    monkeypatch.setattr(gate.time, "monotonic", lambda: later)
    assert begins(1001)


@pytest.mark.parametrize("stream", [[1], {}, None, "one", 1.5])
def test_a_stream_has_a_number(stream, inbox):
    assert not passes(inbox, piece(sequence=0, size=0, stream_id=stream))


def test_at_the_end_of_the_job_nothing_is_waited_for(inbox, monkeypatch):
    """FLARE waits five minutes for the next piece of a message, and does not end before."""
    stopped = []
    tasks = {
        name: SimpleNamespace(
            origin=name, completed=done, stop=lambda error, notify, name=name: stopped.append((name, notify))
        )
        for name, done in ((f"hospital-1.{JOB}", False), (f"hospital-2.{JOB}", True), ("server", False))
    }
    monkeypatch.setattr(gate.RxTask, "rx_task_map", tasks)
    inbox.close()
    assert stopped == [(f"hospital-1.{JOB}", False)]
    assert not passes(inbox, piece(size=100, sequence=0, stream_id=1))


def test_what_is_not_for_this_process_is_not_its_business(inbox):
    assert passes(inbox, piece(to="server.another", size=10**9, sequence=0, stream_id=1))
    own = piece(size=10**9, sequence=0, stream_id=1)
    own.headers[MessageHeaderKey.ORIGIN] = "server"
    assert passes(inbox, own)


def section(marker, content, kind=0):
    return lobs.HEADER_STRUCT.pack(marker, kind, len(content)) + content


BODY = section(lobs.MARKER_MAIN, b"\x81\xa1a\x01")


def decoded(content, origin=f"hospital-1.{JOB}", keys: Any = StreamHeaderKey):
    headers = {MessageHeaderKey.ORIGIN: origin, StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS}
    headers |= {keys.CHANNEL: CellChannel.SERVER_COMMAND, keys.TOPIC: "submit_update"}
    one = Message(headers, content)
    cell_module.decode_payload(one, StreamHeaderKey.PAYLOAD_ENCODING, fobs_ctx={})
    assert StreamHeaderKey.PAYLOAD_ENCODING not in one.headers
    return one.payload


def test_what_is_within_bounds_is_read(inbox, refused):
    assert decoded([BODY[:5], BODY[5:]]) == {"a": 1}
    assert decoded(BODY + section(lobs.MARKER_DATUM_BLOB, bytes(16 + 4000))) == {"a": 1}
    assert not refused


def test_no_words_of_one_site_end_the_job(inbox):
    """FLARE ends it at the ones before the last."""
    codes = [ReturnCode.RUN_MISMATCH, ReturnCode.TASK_UNKNOWN, ReturnCode.UNSAFE_JOB, ReturnCode.BAD_TASK_DATA]
    inbox.expect(body=10_000, data=0)
    for keys in (StreamHeaderKey, MessageHeaderKey):
        softened = [decoded(fobs.dumps(make_reply(code)), keys=keys).get_return_code() for code in codes]
        assert softened == [ReturnCode.EXECUTION_EXCEPTION] * 3 + [ReturnCode.BAD_TASK_DATA]
    assert set(codes[:3]) == set(ServerRunner.ABORT_RETURN_CODES)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ""),
        (b"\xff" * 100, "another kind"),
        (BODY[:12], ""),
        (section(lobs.MARKER_MAIN, b"\x80" * 1001), "a section of 1001 bytes; at most 1000 would be right"),
        (BODY + section(lobs.MARKER_DATUM_BLOB, bytes(5001)), "a section of 5001 bytes; at most 5000"),
        (BODY + section(lobs.MARKER_DATUM_BLOB, bytes(20)) * 2, "another kind"),
        (BODY + section(lobs.MARKER_DATUM_FILE, bytes(20)), "another kind"),
        (BODY + section(lobs.MARKER_DATUM_TEXT, bytes(20), 1), "another kind"),
        (BODY + section(lobs.MARKER_DATUM_BLOB, bytes(20), 1), "another kind"),
        (section(lobs.MARKER_MAIN, b"\x81\xadno__fobs_type\xc1"), ""),
    ],
)
def test_what_is_not_ends_no_process(inbox, refused, content, problem):
    reply = decoded(content)
    assert isinstance(reply, Shareable)
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert [site for site, _ in refused] == ["hospital-1"]
    assert problem in refused[0][1]


def test_the_servers_own_words_are_read_as_ever(inbox):
    assert decoded(section(lobs.MARKER_MAIN, b"\x92" + 2 * (b"\xc4\xff" + bytes(255))), "server") == [bytes(255)] * 2
    with pytest.raises(RuntimeError):
        decoded(b"", "server")


def test_all_bounds_can_hold_what_flare_sends():
    assert gate.SMALL_BYTES < gate.PARENT_BYTES < gate.FRAME_BYTES
