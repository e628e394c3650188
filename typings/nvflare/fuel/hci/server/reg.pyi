from nvflare.fuel.hci.conn import Connection

class CommandFilter:
    def pre_command(self, conn: Connection, args: list[str]) -> bool: ...

class ServerCommandRegister:
    def add_filter(self, cmd_filter: CommandFilter) -> None: ...
