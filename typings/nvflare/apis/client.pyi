class Client:
    name: str
    token: str
