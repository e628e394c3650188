class Constant:
    FLOWER_PREDEPLOYED: str
