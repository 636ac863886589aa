"""The compiling process: `python -m sidecar.grammars --fd N`. Started by the front, ends with it.

A client wrote what is compiled here, so each grammar is compiled in a child of its own, forked when everything is
loaded: one that takes too long, too much memory, or crashes the compiler costs that child and nothing else.
"""

import argparse
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Final

import msgspec

from sidecar.grammars.compiling import GrammarCompiler
from sidecar.wire.frames import FrameReader, encode_frame
from sidecar.wire.grammars import Compiled, CompilerCommand, CompilerReport, Grammar, Learnt, Refused

# GUARDS, C5.
MOST_CPU_S: Final = 2
MOST_BYTES: Final = 2 * 1024 * 1024 * 1024
MOST_COMPILED_BYTES: Final = 32 * 1024 * 1024
# It must not take from those who are being answered.
NICENESS: Final = 10
_READ_BYTES: Final = 1 << 20
_TOO_LONG: Final = "it takes too long to compile; make it smaller, above all its repetitions and lengths"

Answer = Compiled | Refused


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sidecar.grammars")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--most-wall-s", type=float, required=True)
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole group; the front decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    # msgspec takes a union for a type, which mypy cannot say.
    reader: FrameReader[CompilerCommand] = FrameReader(CompilerCommand)  # type: ignore[arg-type]
    compiler: GrammarCompiler | None = None
    with socket.socket(fileno=arguments.fd) as front:
        while data := front.recv(_READ_BYTES):
            for command in reader.feed(data):
                report: CompilerReport
                if not isinstance(command, Grammar):
                    compiler = GrammarCompiler(command)
                    report = Learnt(compiler.vocabulary())
                elif compiler is None:
                    raise RuntimeError("a grammar came before the vocabulary")
                else:
                    report = compile_apart(compiler, command, arguments.most_wall_s)
                front.sendall(encode_frame(report))
    return 0


def compile_apart(compiler: GrammarCompiler, grammar: Grammar, most_wall_s: float) -> Answer:
    """Compile in a child, bounded in time and memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _compile_and_exit(compiler, grammar, writing)
    os.close(writing)
    try:
        answer = _read_all(reading, time.monotonic() + most_wall_s)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if answer is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Refused(_TOO_LONG)
    if not answer:
        return Refused("the compiler failed on it")
    decoded: Answer = msgspec.msgpack.decode(answer, type=Answer)
    return decoded


def _compile_and_exit(compiler: GrammarCompiler, grammar: Grammar, writing: int) -> None:
    """The child. Whatever happens it leaves here: what the parent has open is not its own."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S + 1))
        if mapped := _address_space():
            resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES, resource.RLIM_INFINITY))
        answer = compiler.compile(grammar)
        if isinstance(answer, Compiled) and len(answer.compiled) > MOST_COMPILED_BYTES:
            answer = Refused("it is too large when compiled; make it smaller")
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(msgspec.msgpack.encode(answer))
        code = 0
    finally:
        os._exit(code)


def _address_space() -> int:
    """What this process has mapped, in bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  a forked child does as little as it can
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _read_all(reading: int, until_s: float) -> bytes | None:
    """What a child writes until it ends; None if it has not by then, in monotonic seconds."""
    pieces: list[bytes] = []
    while (left_s := until_s - time.monotonic()) > 0:
        if select.select([reading], [], [], left_s)[0]:
            piece = os.read(reading, _READ_BYTES)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
    return None


if __name__ == "__main__":
    sys.exit(main())
