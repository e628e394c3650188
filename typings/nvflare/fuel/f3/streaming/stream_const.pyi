STREAM_CHANNEL: str
STREAM_ACK_TOPIC: str
STREAM_DATA_TOPIC: str
STREAM_ERROR_TOPIC: str

class StreamDataType:
    FINAL: int

class StreamHeaderKey:
    CHANNEL: str
    TOPIC: str
    SIZE: str
    SEQUENCE: str
    STREAM_ID: str
    DATA_TYPE: str
    ERROR_TYPE: str
