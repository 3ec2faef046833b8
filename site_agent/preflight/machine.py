"""Checks of the machine: what it computes with, and that it does."""

import http.client
import json
import os
import shutil
import socket
import time
import warnings
from pathlib import Path

from shared.findings import Finding, failed, good, unjudged, warning
from site_agent.cohort import CohortError, open_cohort
from site_agent.monitoring import CONTACT_WITHIN_S
from site_agent.settings import SiteSettings

GIB = 1 << 30
LEAST_MEMORY, GOOD_MEMORY = GIB, 3 * GIB
LEAST_DISK, GOOD_DISK = GIB, 5 * GIB
GOOD_GPU = GIB
METRICS_S = 3.0
"""How long whoever has the metrics' port is waited for."""
SLOW_S = 60.0
"""A gradient of one patient that takes longer makes a round take hours."""


def gpu() -> Finding:
    """Whether there is a GPU that torch can use, and room on it."""
    import torch

    check = "GPU"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that does not fit: said below
        usable = torch.cuda.is_available()
    if usable:
        free, _ = torch.cuda.mem_get_info(0)
        name = torch.cuda.get_device_name(0)
        if free < GOOD_GPU:
            return warning(
                check, f"{name}: {_gib(free)} free", "end what else uses it, or give it more room"
            )
        return good(check, f"{name}: {_gib(free)} free")
    cores = len(os.sched_getaffinity(0))
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return warning(
            check,
            f"one is there that torch {torch.__version__} cannot use; {cores} cores compute",
            "install the driver, and a torch that is built for its CUDA version",
        )
    return good(check, f"none; {cores} cores compute")


def metrics(settings: SiteSettings) -> Finding:
    """Whether the port for metrics is free, or this site's connector has it."""
    check, port = "metrics", settings.metrics_port
    if port == 0:
        return good(check, "off (metrics_port is not set)")
    remedy = "set metrics_port to a free port above 1023, or to 0"
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except PermissionError:
        return failed(check, f"port {port} is not open to this user", remedy)
    except OSError:
        if _is_a_connectors(port) and _heard_lately(settings):
            return good(check, f"port {port}: this site's connector answers there")
        return failed(check, f"port {port} is taken by another program", remedy)
    return good(check, f"port {port} is free")


def _is_a_connectors(port: int) -> bool:
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=METRICS_S)
    try:
        asked.request("GET", "/readyz")  # ready or not, it says which of its checks pass
        content = asked.getresponse().read(4096)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()
    try:
        return set(json.loads(content)["checks"]) == {"worker", "cohort", "policy", "aggregator"}
    except (ValueError, KeyError, TypeError):
        return False


def _heard_lately(settings: SiteSettings) -> bool:
    """Whether this site's connector runs: it writes down when the aggregator answers."""
    try:
        return time.time() - settings.contact_path.stat().st_mtime < CONTACT_WITHIN_S
    except OSError:
        return False


def memory() -> Finding:
    """Whether there is memory left for the worker, bytes."""
    free = available_memory()
    if free is None:
        return unjudged("memory", "this system does not tell", "look yourself: 3 GiB are wanted")
    if free < GOOD_MEMORY:
        rate = failed if free < LEAST_MEMORY else warning
        return rate(
            "memory",
            f"{_gib(free)} left",
            f"leave the worker {_gib(GOOD_MEMORY)}: end other programs, or raise the limit",
        )
    return good("memory", f"{_gib(free)} left")


def available_memory(
    proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that can be had: of the machine, or of the control group where it has a limit."""
    try:
        (line,) = [row for row in proc.read_text().splitlines() if row.startswith("MemAvailable:")]
        free = 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return None
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(limit - used, 0))


def disk(settings: SiteSettings) -> Finding:
    """Whether there is room for cohort, outbox and logs, bytes."""
    free = shutil.disk_usage(settings.home).free
    if free < GOOD_DISK:
        rate = failed if free < LEAST_DISK else warning
        return rate(
            "disk",
            f"{_gib(free)} free where the home is",
            f"free {_gib(GOOD_DISK)}, or move the home to a larger disk",
        )
    return good("disk", f"{_gib(free)} free")


def gradient(settings: SiteSettings) -> Finding:
    """Takes one gradient of one patient, as a request does, and throws it away."""
    check = "gradient"
    try:
        cohort = open_cohort(settings.cohort_path)
    except CohortError:
        return unjudged(check, "there is no patient to compute on", "see patients")
    import torch

    from shared.contract import RunContract
    from shared.gradients import patient_parts
    from shared.networks import initial_weights
    from shared.tasks.settings import CtDenoise, MrDenoise
    from site_agent.summaries import device
    from site_agent.worker import set_threads

    contract = RunContract(
        name="preflight", task=CtDenoise() if cohort.index.modality == "CT" else MrDenoise()
    )
    try:
        set_threads()
        started = time.monotonic()
        low, high = contract.task.window
        (images,) = cohort.images(size_px=contract.task.size_px, low=low, high=high, patients=1)
        (part,) = patient_parts(
            contract=contract,
            kind="gradients",
            network="student",
            weights=initial_weights(contract.student, seed=0)[None],
            patients=[torch.from_numpy(images)],
            seed=0,
            device=device(),
        )
        finite = bool(torch.isfinite(part).all())
    except Exception as error:
        # Its text may hold anything; the kind is enough to ask somebody.
        return failed(
            check,
            f"computing one failed ({type(error).__name__})",
            "run `site-agent index` again; else send this line to the developers",
        )
    seconds = time.monotonic() - started
    if not finite:
        return failed(check, "it is not finite", "run `site-agent index` again")
    told = f"one patient's took {seconds:.1f} s on {device()}"
    if seconds > SLOW_S:
        return warning(check, told, "give the worker more cores (FEDSTILL_THREADS), or a GPU")
    return good(check, told)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
