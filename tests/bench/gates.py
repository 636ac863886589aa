"""The gates that `gate.py` compares: how each is started, stopped meanwhile and ended, and what it costs.

Tollhouse and the bare aiohttp proxy are here. LiteLLM and nginx are looked for in one folder outside this checkout, the
`--peers-folder`, and nginx then where the system has it:

    litellm/        a virtual environment: python -m venv litellm && litellm/bin/pip install 'litellm[proxy]'
    nginx           the program, if the system has none: apt-get install nginx-light

Each runs alone: the others are stopped meanwhile. LiteLLM has a master key and no database, so its keys and budgets
cost it nothing here. nginx knows no key at all.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instant import INSTANT, PACED

BENCH = Path(__file__).parent
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 20.0
NAMES = ("tollhouse", "aiohttp", "litellm", "nginx")
# Nothing is refused, and every rule has something to do.
PRO = {
    "requests_per_minute": 100_000_000,
    "tokens_per_minute": 100_000_000_000,
    "concurrency": 100_000,
    "monthly_requests": 1_000_000_000,
    "monthly_tokens": 1_000_000_000_000,
    "max_output_tokens": 8192,
    "default_output_tokens": 2048,
    "models": [INSTANT, PACED],
    "priority": 10,
}


class MissingError(Exception):
    """A peer is not installed; the text says where it was looked for."""


@dataclass(frozen=True)
class Gate:
    """A started server on a port of 127.0.0.1. `about` says what it is, `key` what it wants to be shown."""

    name: str
    about: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    key: str = "none"
    folder: Path = field(default_factory=Path)

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def wait(self) -> None:
        """Until it listens. Exits if it ends instead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def cpu_s(self) -> dict[str, float]:
        """The time that its threads have had on a core so far: the first one of each process, and all others."""
        spent = {"main": 0.0, "other": 0.0}
        for pid in _group(self.process.pid):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    # proc(5): the first number of schedstat is nanoseconds on a core.
                    spent_ns = int((thread / "schedstat").read_text().split()[0])
                    spent["main" if thread.name == str(pid) else "other"] += spent_ns / 1e9
        return spent

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            self.resume()  # a stopped process takes no other signal
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Upstream:
    """Where `instant.py` listens."""

    socket: Path
    port: int


def start(name: str, upstream: Upstream, peers: Path | None, folder: Path) -> Gate:
    """Raises MissingError."""
    starters: dict[str, Callable[[Upstream, Path | None, Path], Gate]] = {
        "tollhouse": _tollhouse,
        "aiohttp": _aiohttp,
        "litellm": _litellm,
        "nginx": _nginx,
    }
    home = folder / name
    home.mkdir()
    return starters[name](upstream, peers, home)


def start_upstream(folder: Path, core: int | None) -> tuple[Upstream, subprocess.Popen[bytes]]:
    upstream = Upstream(folder / "instant.sock", free_port())
    command = [sys.executable, str(BENCH / "instant.py"), "--socket", str(upstream.socket)]
    process = run([*command, "--port", str(upstream.port)], folder, folder / "instant.log")
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    deadline = time.monotonic() + START_TIMEOUT_S
    while not upstream.socket.exists():
        if time.monotonic() > deadline or process.poll() is not None:
            raise SystemExit(f"the upstream did not start:\n{(folder / 'instant.log').read_text()}")
        time.sleep(0.05)
    return upstream, process


def house(upstream: Upstream, folder: Path) -> str:
    """Tollhouse's files and a database with one key, which is given: a policy with every limit, SQLite with FULL."""
    (folder / "policies").mkdir()
    (folder / "conf").mkdir()
    # JSON is YAML, and has no anchors.
    (folder / "policies/default.yaml").write_text(json.dumps({"version": 1, "tiers": {"pro": PRO}}))
    settings: dict[str, Any] = {
        "upstreams": [{"name": "instant", "socket": str(upstream.socket)}],
        "listen": {"port": free_port()},
        "admin": {"port": 0},
        "database": {"synchronous": "FULL"},
    }
    (folder / "conf/proxy.yaml").write_text(json.dumps(settings))
    _command(folder, "db", "upgrade")
    _command(folder, "accounts", "create", "bench")
    return str(_command(folder, "keys", "create", "--account", "bench", "--tier", "pro", "--name", "bench")["secret"])


def more_keys(folder: Path, count: int) -> list[str]:
    """So many new keys of a running house."""
    names = [f"bench-{number}" for number in range(count)]
    asked = ("keys", "create", "--account", "bench", "--tier", "pro", "--name")
    return [str(_command(folder, *asked, name)["secret"]) for name in names]


def port_of(folder: Path) -> int:
    """The port that a folder's Tollhouse listens on."""
    return int(json.loads((folder / "conf/proxy.yaml").read_text())["listen"]["port"])


def run(command: list[str], folder: Path, log: Path, **environ: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches us alone, and one signal reaches all processes of a server.
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, cwd=folder, env={**os.environ, **environ}, start_new_session=True
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _tollhouse(upstream: Upstream, _peers: Path | None, folder: Path) -> Gate:
    key = house(upstream, folder)
    process = run([str(BIN / "tollhouse"), "serve"], folder, folder / "log")
    about = f"Tollhouse {version('tollhouse')}, one key of a tier with every limit, SQLite FULL, JSON log"
    return Gate("tollhouse", about, port_of(folder), process, folder / "log", key, folder)


def _command(folder: Path, *arguments: str) -> Any:
    done = subprocess.run([BIN / "tollhouse", "--json", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"tollhouse {' '.join(arguments)} failed:\n{done.stdout.decode()}{done.stderr.decode()}")
    return json.loads(done.stdout) if done.stdout.strip() else None


def _aiohttp(upstream: Upstream, _peers: Path | None, folder: Path) -> Gate:
    port = free_port()
    command = [sys.executable, str(BENCH / "bare.py"), "--socket", str(upstream.socket), "--port", str(port)]
    about = f"aiohttp {version('aiohttp')} on uvloop {version('uvloop')}, a reverse proxy of one route, no access log"
    return Gate("aiohttp", about, port, run(command, folder, folder / "log"), folder / "log")


def _litellm(upstream: Upstream, peers: Path | None, folder: Path) -> Gate:
    program = (peers or Path("/nonexistent")) / "litellm/bin/litellm"
    if not program.exists():
        raise MissingError(f"no {program.name} in {peers}/litellm" if peers else "no --peers-folder was given")
    released = subprocess.run(
        [program.with_name("python"), "-c", "from importlib.metadata import version; print(version('litellm'))"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()
    base = {"api_base": f"http://127.0.0.1:{upstream.port}/v1", "api_key": "none"}
    models = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", **base}} for name in (INSTANT, PACED)]
    settings = {"model_list": models, "general_settings": {"master_key": "sk-bench"}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    port = free_port()
    command = [str(program), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    process = run([*command, "--telemetry", "False"], folder, folder / "log", LITELLM_LOCAL_MODEL_COST_MAP="True")
    about = f"LiteLLM {released}, its proxy with a master key, one worker, no database"
    return Gate("litellm", about, port, process, folder / "log", "sk-bench")


NGINX = """{user} daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 4096; }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000000;
    upstream instant {{ server unix:{socket}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location = /v1/chat/completions {{
            proxy_pass http://instant; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


def _nginx(upstream: Upstream, peers: Path | None, folder: Path) -> Gate:
    places = [str(peers)] if peers else []
    program = shutil.which("nginx", path=os.pathsep.join([*places, os.environ.get("PATH", ""), "/usr/sbin"]))
    if program is None:
        raise MissingError("no nginx in the --peers-folder or on the path")
    port = free_port()
    # A worker of another user could not reach the socket.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(user=user, folder=folder, socket=upstream.socket, port=port))
    told = subprocess.run([program, "-v"], capture_output=True, check=True, text=True).stderr
    command = [program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors"), "-p", str(folder)]
    about = f"{told.strip().rpartition(' ')[2]}, proxy_pass to kept connections, one worker, no access log"
    return Gate("nginx", about, port, run(command, folder, folder / "log"), folder / "errors")


def _group(leader: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # proc(5): after the name in brackets: state, parent, group.
            if int((path / "stat").read_text().rpartition(")")[2].split()[2]) == leader:
                found.append(int(path.name))
    return found
