"""How much memory each kind of process takes, sampled from /proc."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

from shared.guardian import descendants

INTERVAL_S = 3.0
LARGEST_SHARE = 0.03
"""Of a core: the kernel walks every page of some forty processes for one sample."""
KINDS = (
    ("guardian", ("guardian.py",)),
    ("worker", ("site_agent.cli worker",)),
    ("supernode", ("site_agent.node", "site_agent.cli connect")),
    ("clientapp", ("site_agent.superexec", "clientapp")),
    ("serverapp", ("serverapp",)),
    ("superlink", ("flower-superlink",)),
    ("executor", ("aggregator.executor",)),
    ("api", ("aggregator.services",)),
    ("utility", ("deploy.demo.evaluation", "multiprocessing")),
    ("images", ("deploy.demo.hospitals",)),
    ("launcher", ("deploy.demo",)),
)
"""A process is of the first kind one of whose words is in its command line."""


class MemoryWatch:
    """Samples the proportional set size of this process and everything below it.

    Shared pages are divided among those that share them, so that the sum is what is in use.
    """

    def __init__(self) -> None:
        self.peak_mib: dict[str, float] = {}
        """The highest sum of each kind, and of all together as ``total``."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        pause_s = INTERVAL_S
        while not self._stop.wait(pause_s):
            began = time.thread_time()
            for kind, mib in sample(os.getpid()).items():
                self.peak_mib[kind] = round(max(mib, self.peak_mib.get(kind, 0.0)), 1)
            pause_s = max(INTERVAL_S, (time.thread_time() - began) / LARGEST_SHARE)


def sample(root: int) -> dict[str, float]:
    """MiB by kind of the processes from ``root`` down, and their ``total``."""
    found: Counter[str] = Counter()
    for pid in (root, *descendants(root)):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile
            continue
        kib = next((int(line.split()[1]) for line in rollup.splitlines() if "Pss:" in line), 0)
        found[kind_of(command)] += kib
    found["total"] = sum(found.values())
    return {kind: kib / 1024 for kind, kib in found.items()}


def kind_of(command: str) -> str:
    """The kind of process a command line is; ``cli`` for the commands that come and go."""
    if "guardian.py" in command:
        return "guardian"
    return next((kind for kind, words in KINDS if any(w in command for w in words)), "cli")
