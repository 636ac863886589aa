"""The engine process: `python -m sidecar.engine --fd N --config JSON`. Started by the front, ends with it."""

import argparse
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from sidecar.engine.channel import Channel, FrontGoneError
from sidecar.engine.config import EngineConfig
from sidecar.jsonlog import JsonLog, capture_stdlib, stderr_log
from sidecar.wire.frames import Failed
from sidecar.wire.slots import SlotWriter

# Linux prctl(2): the signal this process gets when its parent ends, and whether its memory may be read by others.
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sidecar.engine")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    # Ctrl-C reaches the whole group; the front decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_DUMPABLE, 0)
        if os.getppid() != parent:
            return 1
    log = stderr_log(name="engine")
    capture_stdlib(log)
    channel = Channel(socket.socket(fileno=arguments.fd))
    with contextlib.suppress(FrontGoneError):
        return _serve(config, channel, log)
    return 0


def openmp_settings(config: EngineConfig, processors: int) -> dict[str, str]:
    """What GNU OpenMP is told before torch is loaded.

    Threads that wait for the next operation give their core away soon: the front, the proxy and the client need it too.
    Where a chat model computes on all processors, each thread stays on its own: a decode step was 11 % faster for it on
    2 busy cores. No other engine is bound, or the main threads of all engines of a host would sit on its first core:
    one that leaves processors to others has its `threads`, one on a GPU only launches, and an encoder has a chat model
    beside it.
    """
    settings = {"GOMP_SPINCOUNT": "20000"}
    alone = config.threads is None or config.threads == processors
    if alone and config.device == "cpu" and not config.embeds:
        settings |= {"OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}
    return settings


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(config: EngineConfig, channel: Channel, log: JsonLog) -> int:
    # Set before Transformers is imported: a served model never comes from a network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name, value in openmp_settings(config, _processors()).items():
        os.environ.setdefault(name, value)
    import torch  # noqa: PLC0415  # seconds; a wrong command line should not wait for it
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from sidecar.engine import assembly  # noqa: PLC0415
    from sidecar.engine.core import Core, EngineBrokenError  # noqa: PLC0415
    from sidecar.engine.grammars import Grammars  # noqa: PLC0415
    from sidecar.engine.liveness import beat_in_layers  # noqa: PLC0415

    transformers_logging.disable_progress_bar()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    slots = SlotWriter(Path(config.slots_path))

    def phase_begins(phase: str) -> None:
        log.info("load_phase", stage=phase)

    try:
        engine = assembly.encoder(config) if config.embeds else assembly.generator(config, phase_begins)
    except assembly.UNUSABLE as exc:
        channel.send(Failed(str(exc)))
        return 1

    def step_failed(exc: Exception, sequences: int) -> None:
        log.exception("step_failed", exc, count=sequences)

    grammars = Grammars(engine.ready.vocab_size)
    core = Core(engine.runner, engine.scheduler, slots, channel, step_failed, grammars=grammars)
    # What is loaded stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    beat_in_layers(engine.network, lambda: slots.beat(core.steps))
    slots.beat(core.steps)
    channel.send(engine.ready)
    for reason in engine.ready.steps_down:
        log.warning("tier_stepped_down", tier=engine.ready.tier, reason=reason)
    log.info(
        "engine_ready",
        tier=engine.ready.tier,
        parity=engine.parity,
        fused=engine.fused,
        threads=torch.get_num_threads(),
        capacity=engine.scheduler.pool.capacity_tokens,
    )
    try:
        core.run()
    except EngineBrokenError as exc:
        channel.send(Failed(str(exc)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
