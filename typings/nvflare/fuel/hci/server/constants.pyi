class ConnProps:
    CMD_ENTRY: str
    USER_ROLE: str
