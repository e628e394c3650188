class CellChannel:
    SERVER_MAIN: str

class CellChannelTopic:
    REPORT_JOB_FAILURE: str
