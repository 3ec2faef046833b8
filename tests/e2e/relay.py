"""Passes bytes on: ``relay.py FROM TO``, each a port on loopback or the path of a Unix socket.

Listens while TO, where it is a path, is there: else it is a port on which nobody listens.
"""

import socket
import sys
import threading
import time
from pathlib import Path


def listen(place: str) -> socket.socket:
    if place.isdecimal():
        return socket.create_server(("127.0.0.1", int(place)), backlog=64)
    made = socket.socket(socket.AF_UNIX)
    made.bind(place)
    Path(place).chmod(0o666)
    made.listen(64)
    return made


def dial(place: str) -> socket.socket:
    if place.isdecimal():
        return socket.create_connection(("127.0.0.1", int(place)))
    made = socket.socket(socket.AF_UNIX)
    made.connect(place)
    return made


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()


def main(here: str, there: str) -> None:
    while True:
        if is_there(there):
            with listen(here) as listener:
                print("relay ready", flush=True)
                serve(listener, there)
        time.sleep(0.1)


def is_there(place: str) -> bool:
    return place.isdecimal() or Path(place).exists()


def serve(listener: socket.socket, there: str) -> None:
    listener.settimeout(0.05)
    while is_there(there):
        try:
            near, _ = listener.accept()
        except TimeoutError:
            continue
        near.setblocking(True)
        try:
            far = dial(there)
        except OSError:
            near.close()
            continue
        for ends in ((near, far), (far, near)):
            threading.Thread(target=pump, args=ends, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
