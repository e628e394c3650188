class AppEventType:
    ROUND_STARTED: str
    ROUND_DONE: str
