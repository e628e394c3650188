class CellMessageHeaderKeys:
    TOKEN: str

class JobFailureMsgKey:
    JOB_ID: str
    CODE: str

class TrainingTopic:
    CHECK_STATUS: str

class ClientStatusKey:
    JOB_ID: str
    RUNNING_JOBS: str

ERROR_MSG_PREFIX: str
