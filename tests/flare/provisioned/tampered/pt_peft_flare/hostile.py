# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false
"""What a site's process may say beside its results, if its owner has changed it."""

import json
import time
import uuid
import zlib
from pathlib import Path

import msgpack
from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FedEventHeader
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding, MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC, STREAM_ERROR_TOPIC
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey as Key
from nvflare.fuel.utils.fobs import dots, lobs
from nvflare.private.defs import CellMessageHeaderKeys


class Hostile:
    """Speaks as one site's process of a job."""

    def __init__(self, fl_ctx: FLContext):
        self.fl_ctx = fl_ctx
        self.engine = fl_ctx.get_engine()
        self.cell = self.engine.get_cell()
        self.job = fl_ctx.get_job_id()
        self.kit = Path(self.engine.get_workspace().root_dir)

    def tell(self, target, channel, topic, headers=None, payload=None):
        """One message, in one piece."""
        self.cell.core_cell.fire_and_forget(channel, topic, target, Message({**(headers or {})}, payload))

    def ask(self, target, channel, topic, payload, headers=None):
        """A message that may come in pieces; waits for the answer for a moment."""
        request = Message({**(headers or {})}, payload)
        self.cell.send_request(channel=channel, topic=topic, target=target, request=request, timeout=5, optional=True)

    def event(self, event_type, request):
        """An event for all components of the server's process."""
        request.set_header(FedEventHeader.EVENT_TYPE, event_type)
        request.set_header(FedEventHeader.TIMESTAMP, 1.0)
        with self.engine.new_context() as fl_ctx:
            self.engine.fire_and_forget_aux_request("fed.event", request, fl_ctx)

    @property
    def server_job(self):
        return f"server.{self.job}"

    def result(self, content):
        """Bytes in place of a result."""
        headers = {Key.PAYLOAD_ENCODING: Encoding.FOBS}
        self.ask(self.server_job, CellChannel.SERVER_COMMAND, "submit_update", content, headers)


def ends_the_job(me):
    me.ask(me.server_job, CellChannel.SERVER_COMMAND, "abort", Shareable())


def fires_an_event(me):
    me.event(EventType.FATAL_SYSTEM_ERROR, Shareable())


def many_curves(me):
    """Scalars for the server's TensorBoard under names of its own."""
    for index in range(300):
        data = AnalyticsData(key=f"{index}" * 100, value=1.0, data_type=AnalyticsDataType.SCALAR)
        me.event("fed.analytix_log_stats", data.to_dxo().to_shareable())


def says_that_it_was_sent_too_much(me):
    me.tell(
        me.server_job, STREAM_CHANNEL, STREAM_ERROR_TOPIC,
        {Key.ERROR_MSG: "too large", Key.ERROR_TYPE: "BlobSizeError", Key.STREAM_ID: 1},
    )  # fmt: skip


def says_that_the_job_has_failed(me):
    headers = {CellMessageHeaderKeys.JOB_ID: me.job}
    me.tell("server", CellChannel.SERVER_PARENT_LISTENER, "update_run_status", headers, {"execution_error": True})


def takes_the_tokens_of_the_others(me):
    request = Message({CellMessageHeaderKeys.JOB_ID: me.job})
    reply = me.cell.core_cell.send_request(
        CellChannel.SERVER_PARENT_LISTENER, "get_clients", "server", request, timeout=3
    )
    if reply.payload:
        (me.kit / "tokens.txt").write_text("all of them")


def stops_the_server(me):
    me.tell("server", "_net_manager", "stop")
    me.tell(me.server_job, "_net_manager", "stop")


def stops_another_site(me):
    me.tell(f"hospital-1.{me.job}", CellChannel.CLIENT_COMMAND, "abort", payload=Shareable())
    me.tell(f"hospital-1.{me.job}", "_net_manager", "stop")
    me.tell("hospital-1", "_net_manager", "stop")


def speaks_for_the_server(me):
    """By the sign that the server puts on what it sends to sites, and as one of its processes."""
    signed = {CellMessageHeaderKeys.CLIENT_NAME: "server", CellMessageHeaderKeys.TOKEN: "server"}
    me.tell(
        me.server_job, CellChannel.SERVER_COMMAND, "abort", {**signed, MessageHeaderKey.ORIGIN: "server"}, Shareable()
    )


def garbage(me):
    me.result(b"\xc1" * 1000)


def many_objects(me):
    body = b"\xdd" + (3_000_000).to_bytes(4, "big") + b"\x80" * 3_000_000
    me.result(lobs.HEADER_STRUCT.pack(lobs.MARKER_MAIN, 0, len(body)) + body)


def many_tensors(me):
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = zlib.compress(json.dumps({f"{n:x}": entry for n in range(1_400_000)}).encode())
    me.result(_with_datum(len(header).to_bytes(8, "little") + header, lobs.MARKER_DATUM_BLOB, 0))


def much_data(me):
    me.result(_with_datum(bytes(400_000_000), lobs.MARKER_DATUM_BLOB, 0))


def fetches(me):
    """Makes the server fetch arrays from where the message says."""
    place = json.dumps({"fqcn": me.cell.get_fqcn(), "ref_id": str(uuid.uuid4())}).encode()
    me.result(_with_datum(place, lobs.MARKER_DATUM_TEXT, dots.NUMPY_DOWNLOAD))


def writes_a_file(me):
    me.result(_with_datum(bytes(1000), lobs.MARKER_DATUM_FILE, 0))


def never_ends(me):
    """Begins messages and ends none."""
    for stream in range(100):
        headers = {Key.STREAM_ID: 10**9 + stream, Key.SEQUENCE: 1, Key.DATA_TYPE: 1}
        inner = {Key.CHANNEL: CellChannel.SERVER_COMMAND, Key.TOPIC: "submit_update"}
        me.tell(me.server_job, STREAM_CHANNEL, STREAM_DATA_TOPIC, headers | inner, bytes(1 << 20))


def records(me):
    """Keeps its next result as it leaves."""
    send = me.cell._send_request

    def recorded(channel, topic, target, request, **options):
        if topic == "submit_update":
            RECORDED.append(Message(dict(request.headers), request.payload))
        return send(channel=channel, topic=topic, target=target, request=request, **options)

    me.cell._send_request = recorded


def replays(me):
    """Says a second time what it said in an earlier round, word for word."""
    for message in RECORDED[:1] * 3:
        again = Message(dict(message.headers), message.payload)
        me.cell.send_request(
            channel=CellChannel.SERVER_COMMAND, topic="submit_update", target=me.server_job, request=again, timeout=10
        )


def trickles(me):
    """A result that comes at a hundred bytes a second."""
    for sequence in range(75):
        headers = {Key.STREAM_ID: 10**9, Key.SEQUENCE: sequence, Key.DATA_TYPE: 1, Key.SIZE: 60_000}
        inner = {Key.CHANNEL: CellChannel.SERVER_COMMAND, Key.TOPIC: "submit_update"}
        me.tell(me.server_job, STREAM_CHANNEL, STREAM_DATA_TOPIC, headers | inner, bytes(100))
        time.sleep(1)


RECORDED: list[Message] = []


def _with_datum(content, marker, kind):
    name = uuid.uuid4()
    reference = {
        "__fobs_type__": "nvflare.fuel.utils.fobs.datum.DatumRef",
        "__fobs_data__": {"data": {"datum_id": str(name), "unwrap": False}},
        "__fobs_dc__": "nvflare.fuel.utils.fobs.decomposer.DataClassDecomposer",
    }
    body = msgpack.packb({"__fobs_type__": "pt_peft_flare.wire.WireTensors", "__fobs_data__": reference})
    assert body
    return (
        lobs.HEADER_STRUCT.pack(lobs.MARKER_MAIN, 0, len(body)) + body
        + lobs.HEADER_STRUCT.pack(marker, kind, 16 + len(content)) + name.bytes + content
    )  # fmt: skip


ACTIONS = {
    one.__name__.replace("_", " "): one
    for one in (
        ends_the_job, fires_an_event, many_curves, says_that_it_was_sent_too_much, says_that_the_job_has_failed,
        takes_the_tokens_of_the_others, stops_the_server, stops_another_site, speaks_for_the_server, garbage,
        many_objects, many_tensors, much_data, fetches, writes_a_file, never_ends, records, replays, trickles,
    )
}  # fmt: skip
