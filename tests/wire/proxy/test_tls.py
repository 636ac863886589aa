"""HTTPS by the server itself."""

import asyncio
import ssl
from pathlib import Path

import pytest

from proxy import door
from proxy.settings import Limits, Tls
from tests.fakes import certificates
from tests.fakes.sidecar import DONE, FINISH, WHOLE, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return certificates.make(tmp_path)


def trusting(tls: Tls) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls.cert)


async def status(house: House, secure: ssl.SSLContext, key: str | None = None) -> int:
    wire = await house.connect(secure=secure)
    await wire.send(request(key, method="GET", path="/v1/models"))
    found = (await wire.answer()).status
    await wire.close()
    return found


async def test_w11_requests_and_streams_are_served_over_https(build: Build, tls: Tls) -> None:
    async with build(tls=tls) as house:
        key, secure = await house.key(), trusting(tls)
        wire = await house.connect(secure=secure)
        spoken = wire.writer.get_extra_info("ssl_object")
        assert spoken.version() in {"TLSv1.2", "TLSv1.3"}
        await wire.send(request(key, chat(stream=False)))
        assert (await wire.answer()).body == WHOLE
        house.sidecar.script = [delta("a"), usage_comment(1), FINISH + DONE]
        house.sidecar.always_produced = 1
        await wire.send(request(key, chat()))
        answer = await wire.answer()
        assert answer.whole
        assert answer.body.endswith(DONE)
        assert (await house.line(count=2))["address"] == "127.0.0.1"
        assert house.lines("plain_http") == []


async def test_w11_plain_http_and_old_tls_are_not_spoken(build: Build, tls: Tls) -> None:
    async with build(tls=tls) as house:
        plain = await house.connect()
        await plain.send(request(await house.key(), chat()))
        assert await plain.closed()
        old = trusting(tls)
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await house.connect(secure=old)
        assert await status(house, trusting(tls)) == 401
        assert house.sidecar.received == []


async def test_w11_a_new_certificate_is_shown_after_a_signal_and_a_bad_one_never(
    build: Build, tls: Tls, tmp_path: Path
) -> None:
    async with build(tls=tls) as house:
        first = trusting(tls)
        kept = await house.connect(secure=first)
        certificates.make(tmp_path)
        house.stop.hang_up()
        await house.line("certificate_loaded")
        assert await status(house, trusting(tls)) == 401
        with pytest.raises(ssl.SSLError):
            await house.connect(secure=first)
        good = trusting(tls)
        await asyncio.to_thread(Path(tls.key).write_text, "no key")
        house.stop.hang_up()
        assert "must be a certificate chain" in (await house.line("certificate_refused"))["reason"]
        assert await status(house, good) == 401
        # Who is connected stays so.
        await kept.send(request(None, method="GET", path="/v1/models"))
        assert (await kept.answer()).status == 401


async def test_w11_handshakes_that_do_not_end_are_ended_and_count(build: Build, tls: Tls) -> None:
    async with build(Limits(max_connections=3, head_timeout_s=5.0), tls=tls) as house:
        secure = trusting(tls)
        silent = [await house.connect() for _ in range(3)]
        full = await house.connect(secure=secure)
        answer = await full.answer()
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        for wire in silent:
            assert await wire.closed()
        assert await status(house, secure) == 401


async def test_w11_a_full_house_does_not_shake_hands_with_everybody(
    build: Build, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_PARTING", 0)
    async with build(Limits(max_connections=1, head_timeout_s=5.0), tls=tls) as house:
        await house.connect()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await house.connect(secure=trusting(tls))


@pytest.mark.usefixtures("patient_door")
async def test_w11_strangers_wait_after_their_handshake_too(build: Build, tls: Tls) -> None:
    async with build(Limits(max_connections_per_address=1), tls=tls) as house:
        key, secure = await house.key(), trusting(tls)
        stranger = await house.connect(secure=secure)
        wire = await house.connect(secure=secure)
        await wire.send(request(key, chat(stream=False)))
        await stranger.send(request(None, method="GET", path="/v1/models", headers={"connection": "close"}))
        assert (await stranger.answer()).status == 401
        assert (await wire.answer()).body == WHOLE


async def test_f11_over_https_a_running_stream_ends_properly(build: Build, tls: Tls) -> None:
    async with build(tls=tls) as house:
        more = asyncio.Event()
        house.sidecar.script = [delta("a"), more, usage_comment(1), FINISH + DONE]
        house.sidecar.always_produced = 1
        key, secure = await house.key(), trusting(tls)
        shaking = await house.connect()
        wire = await house.connect(secure=secure)
        await wire.send(request(key, chat()))
        await wire.head()
        await wire.chunk()
        house.stop.tell()
        await house.line("draining")
        assert await shaking.closed()
        with pytest.raises(OSError, match=r".*"):
            await house.connect(secure=secure)
        more.set()
        assert (await wire.chunk(), await wire.chunk()) == (FINISH + DONE, b"")
        await house.task
