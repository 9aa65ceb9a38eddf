"""The trivial echo of bytes for machines without a C compiler; see ``sink.c``."""

from __future__ import annotations

import select
import socket
import ssl
import sys

BUFFER_SIZE = 256 * 1024
BACKLOG = 1024


def _context(given: dict[str, str]) -> ssl.SSLContext | None:
    if "cert" not in given:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(given["cert"], given["key"])
    return context


class Sink:
    """One epoll loop; clients block, as the load generator always reads."""

    def __init__(self, given: dict[str, str]) -> None:
        self.context = _context(given)
        self.broadcast = given.get("broadcast") == "1"
        self.clients: dict[int, socket.socket] = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.view = memoryview(bytearray(BUFFER_SIZE))

    def accept(self) -> None:
        """Take one more client."""
        client, _ = self.listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is not None:
            client = self.context.wrap_socket(client, server_side=True)
        self.clients[client.fileno()] = client
        self.epoll.register(client.fileno(), select.EPOLLIN)

    def pass_on(self, client: socket.socket) -> None:
        """Send back, or to all others, what one client sent."""
        try:
            data = self.view[: client.recv_into(self.view)]
            if not data:
                raise ConnectionResetError
            for other in list(self.clients.values()) if self.broadcast else [client]:
                if not (self.broadcast and other is client):
                    other.sendall(data)
        except OSError:
            self.epoll.unregister(client.fileno())
            del self.clients[client.fileno()]
            client.close()

    def serve(self) -> None:
        """Run until killed."""
        print(f"LISTENING {self.listener.getsockname()[1]}", flush=True)
        while True:
            for fd, _ in self.epoll.poll():
                if fd == self.listener.fileno():
                    self.accept()
                elif fd in self.clients:
                    self.pass_on(self.clients[fd])


def main() -> None:
    """Read ``key=value`` options and serve."""
    Sink(dict(word.split("=", 1) for word in sys.argv[1:])).serve()


if __name__ == "__main__":
    main()
