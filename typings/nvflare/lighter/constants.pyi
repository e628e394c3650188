class CtxKey:
    TEMPLATE: str

class PropKey:
    COMM_CONFIG_ARGS: str

class TemplateSectionKey:
    COMM_CONFIG: str
