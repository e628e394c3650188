class EventType:
    SYSTEM_START: str
    SYSTEM_END: str
    START_RUN: str
    ABOUT_TO_END_RUN: str
    END_RUN: str
    BEFORE_PULL_TASK: str
