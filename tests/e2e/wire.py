"""A TCP proxy on loopback that can become a black hole, as a firewall that forgets a connection."""

import socket
import threading
from contextlib import suppress


class Wire:
    """Passes bytes between its ``port`` and another one of loopback, until it is cut.

    What was open when it is cut stays open and dead for ever: bytes are taken and go nowhere,
    nobody hangs up. So it goes with whoever connects before ``heal``. With ``answers_only`` what
    the client says still arrives, and what it is answered does not.
    """

    def __init__(self, to: int) -> None:
        self._to, self._listener = to, socket.create_server(("127.0.0.1", 0), backlog=64)
        self._dead = [threading.Event(), threading.Event()]  # upwards, downwards
        self._sockets: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        self.swallowed = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, *, answers_only: bool = False) -> None:
        """From now on nothing passes."""
        for dead in self._dead[1 if answers_only else 0 :]:
            dead.set()

    def heal(self) -> None:
        """Connections made from now on work."""
        for dead in self._dead:
            dead.set()  # those of before stay dead in both directions
        self._dead = [threading.Event(), threading.Event()]

    def close(self) -> None:
        """Hangs up on everybody."""
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except ConnectionRefusedError:
                near.close()
                continue
            except OSError:
                return
            self._sockets += [near, far]
            up, down = self._dead
            for source, sink, dead in ((near, far, up), (far, near, down)):
                threading.Thread(target=self._pump, args=(source, sink, dead), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, dead: threading.Event) -> None:
        try:
            while data := source.recv(1 << 16):
                if dead.is_set():
                    self.swallowed += len(data)
                else:
                    sink.sendall(data)
            if not dead.is_set():
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            if not dead.is_set():
                for end in (source, sink):
                    end.close()
