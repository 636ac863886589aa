"""Images built and containers run without an engine: by buildah with chroot isolation, in a storage of its own.

A container's mounts, network and processes are in namespaces that one process holds; they end with it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = ("buildah", "ip", "mmdebstrap", "nsenter", "unshare")
BASE = "localhost/tollhouse-base"
DEBIAN = "bookworm"
BUILD_S, RUN_S = 1500.0, 120.0
CERTIFICATES = "/etc/ssl/certs"
# Of pip's options those that say where packages are.
SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host")

# The root becomes read-only, but for what `--tmpfs /tmp` and every engine give: /tmp and /run. Then it is held.
HOLD = """
ip link set lo up
mount --bind "$1" "$1"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t tmpfs tmpfs "$1/run"
mount -o remount,ro,bind "$1" "$1"
echo held
exec sleep infinity
"""


class Buildah:
    """One storage, and the images in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        places = ["--root", f"{folder}/store", "--runroot", f"{folder}/run"]
        self._program = ["buildah", *places, "--storage-driver", "overlay"]

    def command(self, *arguments: str) -> list[str]:
        return [*self._program, *arguments]

    def do(self, *arguments: str, timeout_s: float = RUN_S) -> str:
        """What it prints, but for what it tells of its progress."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def make_base(self, tarball: Path | None) -> None:
        """Debian with Python, from its own packages or from a tarball made before, in the place of python:slim."""
        if BASE in self.do("images", "--format", "{{.Name}}"):
            return
        if tarball is None:
            tarball = self._folder / "base.tar"
            made = ["mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
            subprocess.run([*made, DEBIAN, str(tarball)], check=True, capture_output=True, timeout=BUILD_S)
        name = self.do("from", "scratch")
        self.do("add", name, str(tarball), "/")
        self.do("run", "--isolation", "chroot", name, "--", "ln", "-sf", "python3", "/usr/bin/python")
        self.do("commit", "--rm", name, BASE)

    def build(self, name: str, cpu_index: str | None) -> str:
        """Build one of our Dockerfiles; gives the image's name. Packages come from where pip has them here."""
        image = f"localhost/tollhouse-{name}"
        given = [f"BASE={BASE}", "OTEL=1"]
        if cpu_index is not None and name == "sidecar":
            given.append(f"CPU_INDEX={cpu_index}")
        self.do(
            *("bud", "--isolation", "chroot", "--layers", "--format", "docker"),
            *(part for each in given for part in ("--build-arg", each)),
            *(part for volume in self._pip() for part in ("--volume", volume)),
            *("--file", f"Dockerfile.{name}", "--tag", image, "."),
            timeout_s=BUILD_S,
        )
        return image

    def _pip(self) -> list[str]:
        """The volumes that give a build this machine's pip configuration: the file, and the folders named in it."""
        listing = [sys.executable, "-m", "pip", "config", "list"]
        values: dict[str, str] = {}
        for line in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines():
            key, _, value = line.partition("=")
            if (name := key.rpartition(".")[2]) in SOURCES:
                values[name] = value.strip("'\"").replace("\\n", " ")
        written = self._folder / "pip.conf"
        lines = [f"{key} = {value}" for key, value in values.items()]
        written.write_text("\n".join(["[global]", *lines, ""]))
        named = [Path(part.removeprefix("file://")) for value in values.values() for part in value.split()]
        # The pages of an index that is a folder link to its neighbours.
        folders = {path.parent if path.name == "simple" else path for path in named if path.is_absolute()}
        local = sorted(str(folder) for folder in folders if folder.exists())
        return [f"{written}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in (*local, CERTIFICATES))]

    def config(self, image: str) -> dict[str, Any]:
        """What the Dockerfile says of a container: User, Entrypoint, Cmd, Healthcheck and so on."""
        found: dict[str, Any] = json.loads(self.do("inspect", "--type", "image", image))
        return dict(found["Docker"]["config"])


class Container:
    """A running container: a read-only root, what is mounted, and a network of its own with nothing in it.

    Mutable: `_started`, the processes of its main commands.
    """

    def __init__(self, buildah: Buildah, image: str, volumes: Sequence[str], environment: Mapping[str, str]) -> None:
        self._buildah = buildah
        self._name = buildah.do("from", image)
        # buildah 1.28 lays volumes of its own over all that are given but the first, for each that the image declares.
        for declared in buildah.config(image)["Volumes"]:
            buildah.do("config", "--volume", f"{declared}-", self._name)
        root = buildah.do("mount", self._name)
        self._options = [part for volume in volumes for part in ("--volume", volume)]
        self._options += [part for pair in environment.items() for part in ("--env", "=".join(pair))]
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen([*unshare, "sh", "-ec", HOLD, "sh", root], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"held\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self._started: list[subprocess.Popen[bytes]] = []
        self._enter = ["nsenter", "--target", children.split()[0], "--mount", "--net", "--pid"]

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command in it, as the image's user."""
        return [
            *self._enter,
            *self._buildah.command("run", "--isolation", "chroot", *self._options, self._name, "--", *command),
        ]

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            self._started.append(subprocess.Popen(self.command(*command), stdout=out, stderr=out))
        return self._started[-1]

    def do(self, *command: str, code: int = 0) -> str:
        """Run a command beside what runs; gives its output."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=RUN_S, check=False)
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def beside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine in the container's network."""
        return subprocess.run(
            [*self._enter[:3], "--net", "--", *command], capture_output=True, text=True, timeout=RUN_S, check=False
        )

    def end(self) -> None:
        """Ends what runs in it, and takes it away."""
        # `--kill-child`: with unshare goes the first process of the namespace, and with that all others.
        self._holder.kill()
        self._holder.communicate()
        for process in self._started:
            process.wait(60)
        self._buildah.do("umount", self._name)
        self._buildah.do("rm", self._name)


def missing() -> list[str]:
    """The tools that are not here."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]
