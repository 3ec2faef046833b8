"""Runs a command where nothing but one address can be reached: ``sealed.py [options] -- COMMAND``.

Started in namespaces of its own, by ``unshare -n -m``, without a route. ``--relay PORT SOCKET`` is
the one way out: what connects to PORT on its loopback comes out of the Unix socket SOCKET, a
relay's, outside. ``--user``, ``--group`` and ``--groups`` (of root) become those, without any
capability and for good. ``--trace FILE`` writes down every connect(2) of the command and all it
starts.
"""

import argparse
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def open_interpreter() -> None:
    """Lets other users run this Python where it lies in a private folder, in this mount namespace.

    In that folder's place comes an empty one, and in it nothing but the interpreter.
    """
    base = Path(sys.base_prefix).resolve()
    closed = [path for path in (base, *base.parents) if not path.stat().st_mode & 0o001]
    if not closed:
        return
    kept = os.open(base, os.O_PATH)
    for command in (
        ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(closed[-1])],
        ["mkdir", "-p", str(base)],
        ["mount", "-c", "--bind", f"/proc/self/fd/{kept}", str(base)],
    ):
        subprocess.run(command, check=True, pass_fds=[kept])
    os.close(kept)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--relay", nargs=2, metavar=("PORT", "SOCKET"))
    parser.add_argument("--user", type=int)
    parser.add_argument("--group", type=int)
    parser.add_argument("--groups", default="")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("command", nargs="+")
    wanted = parser.parse_args()
    if wanted.user is not None:
        open_interpreter()
    if wanted.relay:
        raise_loopback()
        relay = Path(__file__).with_name("relay.py")
        subprocess.Popen([sys.executable, "-I", relay, *wanted.relay], stdout=subprocess.DEVNULL)
    command = wanted.command
    if wanted.user is not None:
        groups = ["--groups", wanted.groups] if wanted.groups else ["--clear-groups"]
        command = [
            *("setpriv", "--reuid", str(wanted.user), "--regid", str(wanted.group), *groups),
            *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", *command),
        ]
    if wanted.trace is not None:
        # After the change of user strace could not follow: it watches from before it.
        command = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-e",
            "trace=connect,execve",
            "-e",
            "signal=none",
            *command,
        ]
        command[1:1] = ["-o", str(wanted.trace)]
    os.execv(shutil.which(command[0]) or command[0], command)


if __name__ == "__main__":
    sys.exit(main())
