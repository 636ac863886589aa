"""A program that speaks the engine's frames and runs no model; how it behaves is written in `model_path`.

echo: answers each Submit with one Step that ends it, and leaves on Shutdown. deaf: reads nothing and never leaves.
garbage: sends bytes that are no frame. crash: leaves with code 70 after Ready. slow: sends its frames byte by byte.
"""

import argparse
import signal
import socket
import sys

import msgspec

from sidecar.engine.config import EngineConfig
from sidecar.wire.frames import (
    Command,
    Delta,
    Finish,
    FrameReader,
    Ready,
    Report,
    Shutdown,
    Step,
    Submit,
    encode_frame,
)

READY = Ready(
    tier="fake",
    precision="fp32",
    device="cpu",
    dtype="float32",
    max_context=64,
    max_sequences=4,
    vocab_size=16,
    weights_bytes=1,
    fingerprint="fp_fake",
    load_seconds={"weights": 0.5},
)


def step(number: int, deltas: list[Delta], running: int) -> Step:
    return Step(
        number=number,
        deltas=deltas,
        running=running,
        waiting=0,
        prefill_tokens=0,
        decode_tokens=len(deltas),
        kv_used_tokens=0,
        kv_capacity_tokens=64,
        forward_s=0.001,
        total_s=0.002,
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--config", type=msgspec.json.Decoder(EngineConfig).decode)
    options = parser.parse_args()
    behaviour = options.config.model_path
    with socket.socket(fileno=options.fd) as front:

        def say(report: Report) -> None:
            data = encode_frame(report)
            size = 1 if behaviour == "slow" else len(data)
            for at in range(0, len(data), size):
                front.sendall(data[at : at + size])

        if behaviour == "garbage":
            front.sendall(b"\xff" * 64)
        else:
            say(READY)
        if behaviour == "crash":
            return 70
        if behaviour == "deaf":
            signal.pause()
        return listen(front, say)


def listen(front: socket.socket, say) -> int:  # noqa: ANN001 - the closure above
    commands: FrameReader[Command] = FrameReader(Command)
    number = 0
    while data := front.recv(65536):
        for command in commands.feed(data):
            if isinstance(command, Shutdown):
                return 0
            if isinstance(command, Submit):
                number += 1
                ids = command.prompt_ids
                say(step(number, [Delta(command.request_id, command.index, ids, len(ids), Finish.STOP)], 0))
    return 3


if __name__ == "__main__":
    sys.exit(main())
