class CellChannel:
    AUX_COMMUNICATION: str
    SERVER_MAIN: str
    SERVER_COMMAND: str
    RETURN_ONLY: str
    HCI: str
    CELLNET: str

class CellChannelTopic:
    Challenge: str
    Register: str
    Bye: str
    Quit: str
    HEART_BEAT: str
    REPORT_JOB_FAILURE: str

class MessageHeaderKey:
    MSG_TYPE: str
    ORIGIN: str
    DESTINATION: str
    CHANNEL: str
    TOPIC: str
    PAYLOAD_ENCODING: str
    RETURN_CODE: str
    ERROR: str

class MessagePropKey:
    ENDPOINT: str
    COMMON_NAME: str

class MessageType:
    REQ: str

class Encoding:
    FOBS: str

class ReturnCode:
    OK: str
    UNAUTHENTICATED: str
    AUTHENTICATION_ERROR: str
    INVALID_REQUEST: str
