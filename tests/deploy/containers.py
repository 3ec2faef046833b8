"""Services of a compose file, run without a container engine, as nearly as root alone can.

Each gets namespaces of its own for mounts and, where the file says so, for the network; a root that
holds the system, this Python and the packages, read-only, with the service's volumes, tmpfs and
nothing else; its user, groups and capabilities; ``no_new_privs``; and an environment of its own.
What stands in for the images is this installation, so their build is not shown by it.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ID = {"worker": 10001, "connector": 10002, "importer": 10003, "fedstill": 10001, "root": 0}
GROUP = {"fedstill": 10000, "connector": 10002, "images": 10004, "root": 0}
"""As the images' Dockerfiles number them; there is a test that they do."""


def dockerfile(service: dict[str, Any]) -> str:
    """The text of the Dockerfile of a service's image, nothing for an image of others."""
    build = service.get("build")
    return (ROOT / build["dockerfile"]).read_text() if build else ""


def instruction(text: str, name: str) -> list[str]:
    """The words of the last ``NAME [...]`` of a Dockerfile."""
    found = re.findall(rf"^{name} (\[.*?\])$", text.replace("\\\n", ""), re.MULTILINE)
    words: list[str] = json.loads(found[-1]) if found else []
    return words


@dataclass(frozen=True)
class Container:
    """One service, ready to be run."""

    name: str
    command: list[str]
    user: int
    group: int
    groups: list[int]
    capabilities: list[str]
    environment: dict[str, str]
    mounts: list[tuple[str, str, bool]]
    """Host folder or file, path in the container, whether it is read-only."""
    tmpfs: list[str]
    network: bool
    health: list[str]

    def runs(self, *command: str) -> "Container":
        """The same with another command in it."""
        return dataclasses.replace(self, command=list(command))

    def start(self, *, network: int) -> list[str]:
        """The command line that runs it; ``network`` is the process whose network it shares."""
        outside = ["nsenter", "-t", str(network), "-n", "--"] if self.network else []
        apart = ["unshare", "-m", *([] if self.network else ["-n"]), "--"]
        return [*outside, *apart, sys.executable, __file__, json.dumps(dataclasses.asdict(self))]


@dataclass
class Project:
    """A compose file whose volumes are folders below ``folder``."""

    file: Path
    folder: Path
    services: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.services = yaml.safe_load(self.file.read_text())["services"]

    def container(self, name: str) -> Container:
        """A service by its name."""
        service = self.services[name]
        image = dockerfile(service)
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        user, group = service["user"].split(":")
        entry = service.get("entrypoint") or instruction(image, "ENTRYPOINT")
        if "command" in service:
            command = service["command"]
        else:
            command = [] if "entrypoint" in service else instruction(image, "CMD")
        health = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
        return Container(
            name=name,
            command=[word.replace("$$", "$") for word in [*entry, *command]],
            user=int(user),
            group=int(group),
            groups=[int(one) for one in service.get("group_add", [])],
            capabilities=[one.lower() for one in service.get("cap_add", [])],
            environment={
                **dict(re.findall(r"(FEDSTILL_\w+|PYTHON\w+)=(\S+)", image)),
                **service.get("environment", {}),
            },
            mounts=[self.mount(volume, image) for volume in service["volumes"]],
            tmpfs=service["tmpfs"],
            network=service.get("network_mode") != "none",
            health=health or instruction(image.replace(" CMD [", "\nHEALTH ["), "HEALTH"),
        )

    def mount(self, volume: str | dict[str, Any], image: str) -> tuple[str, str, bool]:
        """A volume; a new named one begins as what the image has at that path."""
        if isinstance(volume, dict):
            part = self.folder / volume["source"] / volume["volume"]["subpath"]
            assert part.is_dir(), "an engine refuses a subpath that is not there yet"
            return str(part), volume["target"], volume["read_only"]
        source, path, *mode = volume.split(":")
        if source.startswith("."):
            return str((self.file.parent / source).resolve()), path, mode == ["ro"]
        place = self.folder / source
        if not place.exists():
            found = re.search(rf"install -d -o (\w+) -g (\w+) -m (\d+) {path}\b", image)
            assert found, f"{path} is not made in the image: {source} would be root's"
            place.mkdir()
            group = 10001 if found[1] == "fedstill" else GROUP[found[2]]
            os.chown(place, ID[found[1]], group)
            place.chmod(int(found[3], 8))
        return str(place), path, mode == ["ro"]


def _bind(source: Path, target: Path, *, read_only: bool) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    subprocess.run(["mount", "--rbind", source, target], check=True)
    if read_only:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)


def _enter(container: dict[str, Any]) -> None:
    """Within the new namespaces: makes the root, goes there, and becomes the service."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    new = Path("/mnt")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", new], check=True)
    for top in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", top).is_symlink():
            (new / top).symlink_to(Path("/", top).readlink())
        elif Path("/", top).exists():
            _bind(Path("/", top), new / top, read_only=True)
    _bind(Path("/usr"), new / "usr", read_only=True)
    for system in ("dev", "proc"):
        _bind(Path("/", system), new / system, read_only=False)
    (new / "etc").mkdir()
    for kept in ("passwd", "group", "ssl", "ld.so.cache", "nsswitch.conf", "nginx"):
        if Path("/etc", kept).exists():
            _bind(Path("/etc", kept), new / "etc" / kept, read_only=True)
    (new / "etc/hosts").write_text("127.0.0.1 localhost aggregator\n")
    for place in sorted({Path(sys.base_prefix).resolve(), Path(sys.prefix), ROOT}):
        if not place.is_relative_to("/usr") and not (new / place.relative_to("/")).exists():
            _bind(place, new / place.relative_to("/"), read_only=True)
    for path in container["tmpfs"]:
        inside = new / path.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", inside], check=True)
    for source, path, read_only in container["mounts"]:
        _bind(Path(source), new / path.lstrip("/"), read_only=read_only)
    subprocess.run(["mount", "-o", "remount,bind,ro", new], check=True)
    os.chroot(new)
    os.chdir("/")
    allowed = ",".join(["-all", *(f"+{one}" for one in container["capabilities"])])
    groups = ",".join(map(str, container["groups"]))
    become = [
        *("setpriv", f"--reuid={container['user']}", f"--regid={container['group']}"),
        *([f"--groups={groups}"] if groups else ["--clear-groups"]),
        *(f"--bounding-set={allowed}", "--inh-caps=-all", "--no-new-privs", "--"),
    ]
    environment = {
        **container["environment"],
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/nonexistent",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = str(ROOT)
    found = shutil.which("setpriv")
    assert found, shlex.join(become)
    os.execve(found, [*become, *container["command"]], environment)


if __name__ == "__main__":
    _enter(json.loads(sys.argv[1]))
