"""A process of ours that is spoken to over a socketpair: started here, and spoken to by whoever started it."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Child:
    """A running process and our end of its socketpair."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def start_child(program: Sequence[str], arguments: Sequence[str], read_bytes: int) -> Child:
    """Start `program` with `--fd N`, its end of the pair, and `arguments`. Its stdout and stderr are ours.

    `read_bytes` is the reader's limit. Raises OSError.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                *program,
                *("--fd", str(theirs.fileno()), *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
    reader, writer = await asyncio.open_connection(sock=ours, limit=read_bytes)
    return Child(process, reader, writer)
