class ReturnCode:
    OK: str
    BAD_REQUEST_DATA: str
    RUN_MISMATCH: str
    UNSAFE_JOB: str
    EXECUTION_EXCEPTION: str
    EXECUTION_RESULT_ERROR: str
    TASK_UNKNOWN: str
    TOPIC_UNKNOWN: str

class ReservedTopic:
    APP_METRICS: str
    END_RUN: str

class ReservedKey:
    ENGINE: str
    RUN_NUM: str
    IDENTITY_NAME: str

class FLContextKey:
    TASK_NAME: str
    TASK_DATA: str
    TASK_RESULT: str
    EVENT_DATA: str
    EVENT_SCOPE: str
    JOB_META: str
    CURRENT_JOB_ID: str
    JOB_BLOCK_REASON: str
    JOB_DEPLOY_DETAIL: str
    WORKSPACE_OBJECT: str
    JOB_PROCESS_ARGS: str

class ProcessType:
    SERVER_JOB: str
    CLIENT_JOB: str

class FedEventHeader:
    DIRECTION: str

class EventScope:
    FEDERATION: str

class ServerCommandNames:
    GET_TASK: str
    SUBMIT_UPDATE: str

class AdminCommandNames:
    APP_COMMAND: str
    CHECK_STATUS: str

class RunProcessKey:
    PARTICIPANTS: str

class SystemComponents:
    JOB_MANAGER: str

class SiteType:
    SERVER: str

class FLMetaKey:
    INITIAL_METRICS: str
    NUM_STEPS_CURRENT_ROUND: str
