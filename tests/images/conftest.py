"""Both images, built once, and a house of two containers that share a folder, as conf/compose.yaml has them."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.images.buildah import ROOT, Buildah, Container, missing

USER = 10001
HOME = "/srv/tollhouse"
BIN = Path(sys.executable).parent
START_S = 300.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--storage", type=Path, help="a folder that keeps what is built: the next build takes seconds")
    parser.addoption("--base", type=Path, help="a tarball of Debian with python3-venv; else mmdebstrap makes one")
    parser.addoption("--cpu-index", help="where torch's build for the CPU is, if not at download.pytorch.org")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if os.geteuid() != 0:
        reason = "images are built as root"
    elif lacking := missing():
        reason = f"not installed: {', '.join(lacking)} (Debian's buildah, mmdebstrap, iproute2, util-linux)"
    if reason is not None and os.environ.get("CI") != "true":
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def buildah(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    kept: Path | None = pytestconfig.getoption("--storage")
    buildah = Buildah(kept or tmp_path_factory.mktemp("storage"))
    buildah.make_base(pytestconfig.getoption("--base"))
    yield buildah
    buildah.do("rm", "--all")
    if kept is None:
        buildah.do("rmi", "--all", "--force")


@pytest.fixture(scope="session")
def images(buildah: Buildah, pytestconfig: pytest.Config) -> dict[str, str]:
    return {name: buildah.build(name, pytestconfig.getoption("--cpu-index")) for name in ("proxy", "sidecar")}


@dataclass
class Service:
    """A container and its main process."""

    container: Container
    config: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, event: str) -> dict[str, Any]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.events():
                if line["event"] == event:
                    return line
            time.sleep(0.2)
        raise AssertionError(f"no {event!r}:\n{self.log.read_text()[-4000:]}")

    def healthy(self) -> None:
        """Run the image's HEALTHCHECK, as an engine does."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        self.container.do(*command)


def variable(value: str) -> str:
    """As compose reads it where no variable of it is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@dataclass
class House:
    """The two services."""

    sidecar: Service
    proxy: Service
    shared: Path


def keep_model(cache: Path) -> None:
    """Fill the volume that the service `model` would fill, from the user's own cache, where no other user may look."""
    fetch = ["tollhouse-sidecar", "fetch", "--config", str(ROOT / "conf/sidecar.yaml"), "--json"]
    done = subprocess.run([str(BIN / fetch[0]), *fetch[1:]], cwd=ROOT, capture_output=True, timeout=600, check=True)
    model = Path(json.loads(done.stdout)["path"])
    shutil.copytree(model, cache / model.parent.name / model.name)
    for path in (cache, *cache.rglob("*")):
        os.chown(path, USER, USER)


@pytest.fixture(scope="session")
def house(buildah: Buildah, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    # Named volumes begin with the owner and the mode of the image's folder.
    for name in ("run", "data", "secrets"):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, USER, USER)
    run, cache = f"{folder}/run:{HOME}/run", f"{folder}/cache:{HOME}/cache"
    keep_model(folder / "cache")
    with contextlib.ExitStack() as stack:

        def start(name: str, volumes: list[str]) -> Service:
            said = yaml.safe_load((ROOT / "conf/compose.yaml").read_text())["services"][name]
            config = buildah.config(images[name])
            environment = {key: variable(value) for key, value in said.get("environment", {}).items() if value}
            container = Container(buildah, images[name], volumes, environment)
            stack.callback(container.end)
            command = said.get("entrypoint") or [*config["Entrypoint"], *config["Cmd"]]
            log = folder / f"{name}.log"
            return Service(container, config, container.start(command, log), log)

        sidecar = start("sidecar", [run, cache])
        proxy = start("proxy", [run, f"{folder}/data:{HOME}/data", f"{folder}/secrets:{HOME}/secrets"])
        sidecar.wait_for("ready")
        proxy.wait_for("ready")
        yield House(sidecar, proxy, folder / "run")
