"""A site's line to the server, which counts bytes and can be cut."""

import selectors
import socket
import threading
from contextlib import suppress


class Link:
    """Passes TCP connections to `port` on; they arrive at its own `port`."""

    def __init__(self, port: int):
        self.bytes_up = 0
        """From the site to the server, TLS and all."""
        self.bytes_down = 0
        self._server = port
        self._ends: set[socket.socket] = set()
        self._open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self) -> None:
        """Drops all connections, and new ones at once."""
        self._open = False
        for end in list(self._ends):
            _close(end)

    def mend(self) -> None:
        """Lets connections through again."""
        self._open = True

    def close(self) -> None:
        """For good."""
        self.cut()
        _close(self._listener)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                site, _ = self._listener.accept()
                if self._open:
                    threading.Thread(target=self._pass_on, args=[site], daemon=True).start()
                else:
                    site.close()

    def _pass_on(self, site: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._server))
        except OSError:
            site.close()
            return
        self._ends |= {site, server}
        with suppress(OSError), selectors.DefaultSelector() as selector:
            selector.register(site, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, site)
            while self._open:
                for key, _ in selector.select(1):
                    end = site if key.fileobj is site else server
                    content = end.recv(1 << 16)
                    if not content:
                        raise ConnectionResetError
                    if end is site:
                        self.bytes_up += len(content)
                    else:
                        self.bytes_down += len(content)
                    key.data.sendall(content)
        for end in (site, server):
            self._ends.discard(end)
            _close(end)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
