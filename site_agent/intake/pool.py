"""Readers: limited child processes that parse image files, and their replacement.

1. Jobs come in batches; a batch goes to one reader, which answers its jobs one by one.
2. A reader that is too slow, ends, or answers nonsense is killed, and the job has its code.
3. A job that failed so in a reader that had read other files before is tried once more in a fresh
   one: what becomes of a file depends on no other file. The rest of the batch goes on there.

A reader's environment is empty but for what finds its libraries.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from queue import Empty, LifoQueue
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from site_agent.frames import recv_frame, send_frame
from site_agent.intake.reader import READY
from site_agent.intake.reasons import LIMITS, SkipReason

Job = dict[str, Any]

_PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONPATH")
_DTYPES = ("<i2", "<f4")
_START_WITHIN_S = 120.0


class ReaderError(RuntimeError):
    """No reader can be started; the text names the fix."""


@dataclass(frozen=True)
class Limits:
    """What one file may take of its reader."""

    wall_s: float = 15.0
    cpu_s: int = 10
    memory_bytes: int = 2**30
    answer_bytes: int = 192 * 2**20


@dataclass(frozen=True)
class Answer:
    """What became of a job: ``code`` where it failed, else its fields, and pixels if asked for."""

    fields: dict[str, Any] = field(default_factory=dict)
    array: NDArray[np.generic] | None = None
    code: SkipReason | None = None


class Reader:
    """One child process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.jobs = 0
        ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        with theirs:
            command = [sys.executable, "-P", "-m", "site_agent.intake.reader"]
            numbers = theirs.fileno(), limits.memory_bytes, limits.cpu_s
            self._process = subprocess.Popen(
                [*command, *map(str, numbers)],
                env={"LANG": "C.UTF-8", **threads, **environment},
                stdin=subprocess.DEVNULL,
                # What libraries print names files and repeats what they say.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        self._socket = ours
        try:
            hello = recv_frame(ours, limit=len(READY), timeout_s=_START_WITHIN_S)
        except OSError:
            hello = b""
        if hello != READY:
            self.kill()
            raise ReaderError(
                "the process that reads images does not start: run "
                "`python -m site_agent.intake.reader` by hand to see why, and leave it 1 GB"
            )

    def send(self, jobs: Sequence[Job]) -> None:
        """Hands over a batch."""
        self._socket.settimeout(self._limits.wall_s)
        try:
            send_frame(self._socket, json.dumps(jobs).encode())
        except OSError:
            return  # it has ended: its first answer will tell

    def receive(self) -> Answer:
        """The next job's answer; after a code of ``LIMITS`` the reader is of no more use."""
        self.jobs += 1
        deadline = time.monotonic() + self._limits.wall_s
        try:
            head = recv_frame(
                self._socket, limit=self._limits.answer_bytes, timeout_s=self._limits.wall_s
            )
            fields = json.loads(head)
            if "code" in fields:
                return Answer(code=SkipReason(fields["code"]))
            if "dtype" not in fields:
                return Answer(fields=fields)
            array = _array(fields, limit=self._limits.answer_bytes)
            room = array.reshape(-1).view(np.uint8).data
            while len(room):
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                count = self._socket.recv_into(room)
                if not count:
                    raise ConnectionError("the reader hung up")
                room = room[count:]
            return Answer(array=array)
        except TimeoutError:
            return Answer(code=SkipReason.TOO_SLOW)
        except (OSError, ValueError, KeyError, TypeError):
            left_s = max(0.1, min(1.0, deadline - time.monotonic()))
            try:
                ended = self._process.wait(left_s)
            except subprocess.TimeoutExpired:
                ended = 0
            too_slow = ended == -signal.SIGXCPU
            return Answer(code=SkipReason.TOO_SLOW if too_slow else SkipReason.CRASHED)

    def kill(self) -> None:
        """Ends the process at once."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class ReaderPool:
    """At most ``readers`` processes, each started when there is work for it."""

    def __init__(self, *, readers: int, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._readers = readers
        self._idle: LifoQueue[Reader] = LifoQueue()
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._closed = False

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        while True:
            try:
                self._idle.get_nowait().kill()
            except Empty:
                return

    def answers(self, jobs: Iterable[Job], *, batch: int) -> Iterator[Answer]:
        """One answer a job, in the jobs' order; a few batches are read ahead.

        Raises ``ReaderError`` where no reader can be started.
        """
        waiting: deque[Future[list[Answer]]] = deque()
        source = iter(jobs)
        while True:
            while len(waiting) < 2 * self._readers and (some := list(islice(source, batch))):
                waiting.append(self._threads.submit(self._batch, some))
            if not waiting:
                return
            yield from waiting.popleft().result()

    def _batch(self, jobs: list[Job]) -> list[Answer]:
        answers: list[Answer] = []
        while len(answers) < len(jobs) and not self._closed:
            reader = self._idle_or_new()
            left = jobs[len(answers) :]
            reader.send(left)
            for _ in left:
                if self._closed:
                    reader.kill()
                    return answers
                answer = reader.receive()
                if answer.code not in LIMITS:
                    answers.append(answer)
                    continue
                # Wherever it stands now, the reader is done with.
                fresh = reader.jobs == 1
                reader.kill()
                if answer.code is SkipReason.TOO_SLOW or fresh:
                    answers.append(answer)
                else:
                    answers.append(self._once_more(jobs[len(answers)]))
                break
            else:
                self._idle.put(reader)
        return answers

    def _once_more(self, job: Job) -> Answer:
        reader = Reader(self._limits)
        reader.send([job])
        answer = reader.receive()
        if answer.code in LIMITS:
            reader.kill()
        else:
            self._idle.put(reader)
        return answer

    def _idle_or_new(self) -> Reader:
        try:
            return self._idle.get_nowait()
        except Empty:
            return Reader(self._limits)


def _array(fields: dict[str, Any], *, limit: int) -> NDArray[np.generic]:
    """Room for the announced array. Raises ``ValueError`` where it is none of ours."""
    shape, kind = fields["shape"], fields["dtype"]
    if kind not in _DTYPES or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError("the array is none of ours")
    if math.prod(shape) * np.dtype(kind).itemsize > limit:
        raise ValueError("the array is larger than any of ours")
    return np.empty(shape, kind)
