"""A worker that answers at once and computes nothing: ``fake_worker.py SOCKET SITE``.

As a real one it keeps its answers, in ``answers`` beside its socket, and repeats them; it prints a
line for each question. Of networks it says that each does better than the one before. While a file
``hold`` with a number lies there, questions of that round and of later ones wait; to be judged is
the round after the last, to look at images the one after that. ``play.json`` says what it does
wrong: ``{NAME OF THE CONTRACT: {ROUND: "hold", "refuse" or "nan"}}``.
"""

import json
import socket
import sys
import time
from pathlib import Path

import numpy as np

from shared.judging import EvaluateHeader, EvaluationHeader, VetoHeader, VetoQueryHeader
from shared.messages import (
    DryRunHeader,
    DryRunQueryHeader,
    Header,
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
    return encode(reply(message, payload_digest(payload), site))


def reply(message: Message, digest: str, site: str) -> Message:
    asked = message.header
    assert isinstance(asked, ProbeHeader | EvaluateHeader | VetoQueryHeader | DryRunQueryHeader)
    about = {"contract_digest": asked.contract_digest, "site": site}
    if isinstance(asked, DryRunQueryHeader):
        return Message(header=DryRunHeader.model_validate(about | {"patients_at_least": 5}))
    about |= {"request_digest": digest, "seconds": 0.0}
    if isinstance(asked, ProbeHeader):
        about |= {"round": asked.round, "kind": asked.kind, "patients_at_least": 5}
        values = message.arrays["weights"] * 0 + 1e-4
        return Message(header=SummaryHeader.model_validate(about), arrays={"values": values})
    if isinstance(asked, VetoQueryHeader):
        about |= {"passed": True, "ratio_ssim": 1.0, "ratio_ncc": 1.0, "too_alike": ()}
        return Message(header=VetoHeader.model_validate(about))
    networks = 1 + sum(len(rows) for rows in message.arrays.values())
    about["psnr_db"] = [20.0 + number for number in range(networks)]
    about |= {"ssim": [0.5] * networks, "patients_at_least": 5}
    return Message(header=EvaluationHeader.model_validate(about))


def place(asked: Header) -> int:
    """Which round it is."""
    if isinstance(asked, ProbeHeader):
        return asked.round
    if isinstance(asked, EvaluateHeader | VetoQueryHeader):
        return asked.contract.rounds + (1 if isinstance(asked, EvaluateHeader) else 2)
    return 0


def played(payload: bytes, folder: Path) -> str:
    """What is to be done wrong now, or nothing."""
    try:
        asked = decode(payload).header
    except MessageError:
        return ""
    try:
        if 0 < int((folder / "hold").read_text()) <= place(asked):
            return "hold"
    except (FileNotFoundError, ValueError):
        pass
    try:
        play = json.loads((folder / "play.json").read_text())
    except (FileNotFoundError, ValueError):
        return ""
    if not isinstance(asked, ProbeHeader | EvaluateHeader | VetoQueryHeader):
        return ""
    return str(play.get(asked.contract.name, {}).get(str(place(asked)), ""))


def respond(payload: bytes, site: str, folder: Path) -> bytes:
    digest, kept = payload_digest(payload), folder / "answers" / payload_digest(payload)
    while (fault := played(payload, folder)) == "hold":
        tell("holds", digest)
        time.sleep(0.05)
    if fault == "refuse":
        tell("refuses", digest)
        return encode(refusal(site=site, code=RefusalCode.POLICY, incident="0" * 12))
    if kept.exists():
        tell("repeats", digest)
        return kept.read_bytes()
    answered = answer(payload, site)
    if fault == "nan":
        wrong = decode(answered)
        answered = encode(
            Message(header=wrong.header, arrays={"values": wrong.arrays["values"] * np.nan})
        )
    kept.parent.mkdir(exist_ok=True)
    kept.with_suffix(".part").write_bytes(answered)
    kept.with_suffix(".part").replace(kept)
    tell("computes", digest)
    return answered


def tell(what: str, digest: str, *, last: list[tuple[str, str]] = []) -> None:  # noqa: B006
    if last[-1:] != [(what, digest)]:
        last[:] = [(what, digest)]
        print(what, digest, flush=True)


def main(path: Path, site: str) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        print("worker ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    payload = recv_frame(connection, limit=MAX_FRAME_BYTES)
                    send_frame(connection, respond(payload, site, path.parent))
                except OSError as error:  # who asked is gone
                    print("connection broke", error, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
