"""A worker that answers at once with zeros: ``fake_worker.py SOCKET SITE``.

While a file ``hold`` with a round number lies beside its socket, that round waits.
"""

import socket
import sys
import time
from pathlib import Path

import numpy as np

from shared.messages import (
    Message,
    MessageError,
    ProbeHeader,
    RefusalCode,
    SummaryHeader,
    decode,
    encode,
    payload_digest,
    refusal,
)
from site_agent.frames import MAX_FRAME_BYTES, recv_frame, send_frame


def answer(payload: bytes, site: str) -> bytes:
    try:
        message = decode(payload)
    except MessageError:
        return encode(refusal(site=site, code=RefusalCode.MALFORMED, incident="0" * 12))
    assert isinstance(message.header, ProbeHeader)
    header = SummaryHeader(
        contract_digest=message.header.contract_digest,
        request_digest=payload_digest(payload),
        round=message.header.round,
        kind=message.header.kind,
        site=site,
        patients_at_least=5,
        seconds=0.0,
    )
    return encode(Message(header=header, arrays={"values": message.arrays["weights"] * 0 + 1e-4}))


def is_held(payload: bytes, hold: Path) -> bool:
    try:
        header, first = decode(payload).header, int(hold.read_text())
    except (MessageError, FileNotFoundError):
        return False
    return isinstance(header, ProbeHeader) and header.round >= first


def main(path: Path, site: str) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        print("worker ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                payload = recv_frame(connection, limit=MAX_FRAME_BYTES)
                while is_held(payload, path.with_name("hold")):
                    time.sleep(0.05)
                send_frame(connection, answer(payload, site))


if __name__ == "__main__":
    np.seterr(all="raise")
    main(Path(sys.argv[1]), sys.argv[2])
