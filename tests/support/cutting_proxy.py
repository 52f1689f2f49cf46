"""A TCP proxy that cuts connections once, when certain bytes have come by: a network that breaks in the middle."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class CuttingProxy:
    """Forwards `address` to a port of this host; the first answer that holds `trigger` ends its connection halfway.

    `trigger` None: connections are accepted and never answered. A context manager.
    """

    def __init__(self, port: int, trigger: bytes | None) -> None:
        self._port, self._trigger, self.cuts = port, trigger, 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> CuttingProxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            each.close()

    def _serve(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self._open.append(client)
            if self._trigger is None:
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open.append(server)
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        assert self._trigger
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and not self.cuts and self._trigger in data:
                    self.cuts += 1
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
