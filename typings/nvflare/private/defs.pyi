class CellMessageHeaderKeys:
    TOKEN: str

class JobFailureMsgKey:
    JOB_ID: str
    CODE: str
