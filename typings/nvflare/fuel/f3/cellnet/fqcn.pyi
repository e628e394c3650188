class FQCN:
    ROOT_SERVER: str
