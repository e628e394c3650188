class EventType:
    SYSTEM_START: str
    SYSTEM_END: str
    START_RUN: str
    END_RUN: str
    BEFORE_PULL_TASK: str
    BEFORE_CHECK_RESOURCE_MANAGER: str
    JOB_DEPLOYED: str
