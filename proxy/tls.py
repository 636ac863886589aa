"""HTTPS without a terminator in front: the certificate, and a listener that counts connections before their handshake.

A certificate is read again when its files change, or on SIGHUP. One that cannot be used leaves the one before in place.
"""

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path
from typing import Final, NoReturn

from proxy import sockets
from proxy.door import Door, Doorway
from proxy.settings import Tls
from sidecar.jsonlog import JsonLog

# How often the files are looked at.
LOOK_EVERY_S: Final = 60.0
# After an accept that failed, for want of files for example.
ACCEPT_AGAIN_S: Final = 0.1
CLOSE_S: Final = 1.0


class TlsFileError(Exception):
    """A certificate or its key cannot be used. The message says which and why."""


def make_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 and later, HTTP/1.1 only. Reads files. Raises TlsFileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    for name, path in (("cert", tls.cert), ("key", tls.key)):
        try:
            Path(path).read_bytes()
        except OSError as exc:
            raise TlsFileError(f"listen.tls.{name}: {path} cannot be read: {exc.strerror}.") from exc
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as exc:
        raise TlsFileError(
            f"listen.tls: {tls.cert} and {tls.key} must be a certificate chain and its key in PEM, the key without a "
            f"passphrase: {getattr(exc, 'reason', None) or exc}."
        ) from exc
    return context


def _no_passphrase() -> NoReturn:
    # Without this OpenSSL would ask at the terminal.
    raise ValueError("the key has a passphrase")


class Certificate:
    """What the listener shows. Mutable: `context`, whose certificate is replaced; `_stamps`, of the files as read."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._stamps = self._look()
        self.context = make_context(tls)

    def renew(self, *, anyway: bool = False) -> bool:
        """Read the files again if they changed; whether they did. Blocks. Raises TlsFileError."""
        stamps = self._look()
        if stamps == self._stamps and not anyway:
            return False
        self._stamps = stamps
        # First apart: a half-read pair would leave the context in use with a key that is another's.
        make_context(self._tls)
        self.context.load_cert_chain(self._tls.cert, self._tls.key, password=_no_passphrase)
        return True

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(Path(path)) for path in (self._tls.cert, self._tls.key)]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


async def watch(certificate: Certificate, reread: asyncio.Event, log: JsonLog) -> None:
    """Keep a certificate fresh, for ever. `reread` asks for it to be read now."""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reread.wait(), LOOK_EVERY_S)
        asked = reread.is_set()
        reread.clear()
        try:
            if await asyncio.to_thread(certificate.renew, anyway=asked):
                log.info("certificate_loaded")
        except (TlsFileError, OSError) as exc:
            log.error("certificate_refused", reason=str(exc), hint="The one before stays in use.")


class SecureServer:
    """Accepts connections for a door, and has them shake hands once they have a place there.

    Mutable: `_accepting`, the task; `_shaking`, a task for each handshake.
    """

    def __init__(self, bound: socket.socket, door: Door, context: ssl.SSLContext, handshake_s: float) -> None:
        self._bound = bound
        self._door = door
        self._context = context
        self._handshake_s = handshake_s
        self._shaking: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def listen(self, backlog: int) -> None:
        """Raises ListenError."""
        sockets.listen(self._bound, backlog)
        self._accepting = asyncio.create_task(self._accept(), name="accept")

    def close(self) -> None:
        """Take no more. Handshakes are given up."""
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._shaking:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for all that `close` ended."""
        if self._accepting is not None:
            await asyncio.gather(self._accepting, *self._shaking, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    peer, address = await loop.sock_accept(self._bound)
                except OSError:
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                doorway = self._door()
                if not doorway.expect(address):
                    peer.close()
                    continue
                task = asyncio.create_task(self._shake(peer, doorway), name="handshake")
                self._shaking.add(task)
                task.add_done_callback(self._shaking.discard)
        finally:
            # Not before: the loop still watches it.
            self._bound.close()

    async def _shake(self, peer: socket.socket, doorway: Doorway) -> None:
        """A handshake that fails is nobody's business but the client's."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: doorway,
                peer,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except OSError:
            doorway.give_up()
        except asyncio.CancelledError:
            doorway.give_up()
            raise
