class Client:
    def __init__(self, name: str, token: str) -> None: ...
    name: str
    token: str
