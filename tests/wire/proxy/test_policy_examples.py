"""What the cookbook's policies answer where bytes, signatures and headers are what they are about."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from proxy.settings import Limits
from proxy.signing import Signer
from tests.fakes import cookbook
from tests.fakes.policy_desk import Said
from tests.fakes.sidecar import MODEL
from tests.wire.proxy.house import Answer, House, chat, request

PATH: Final = "/v1/chat/completions"
BODY: Final = json.dumps(chat(stream=False)).encode()
Build = Callable[..., Any]


@pytest.fixture
def under(build: Build, tmp_path: Path) -> Build:
    """A house under an example, whose models are the fake sidecar's."""

    def started(name: str, **settings: Any) -> Any:
        text = (cookbook.EXAMPLES / f"{name}.yaml").read_text()
        (tmp_path / "policies/default.yaml").write_text(text.replace('["small"]', f'["{MODEL}"]'))
        return build(**settings)

    return started


def signed(house: House, secret: str, body: bytes = BODY, **headers: str) -> bytes:
    url = f"http://127.0.0.1:{house.ready['port']}{PATH}"
    told = {"host": f"127.0.0.1:{house.ready['port']}"} | headers | Signer(secret).headers("POST", url, body, headers)
    return request(None, body, headers=told)


async def sent(house: House, raw: bytes) -> Answer:
    wire = await house.connect()
    await wire.send(raw)
    return await wire.answer()


def said(answer: Answer) -> str:
    """The answer's cells; no limit of a policy file decides these."""
    again = ", with `idempotent-replayed`" if "idempotent-replayed" in answer.headers else ""
    return f"200{again}" if answer.status == 200 else Said(answer.status, answer.error["code"]).cells()[0]


async def machines(house: House) -> AsyncIterator[tuple[str, str]]:
    secret = await house.key("machine", signed=True)
    raw = signed(house, secret)
    yield "a signed request", said(await sent(house, raw))
    yield "the same bytes again, from anybody", said(await sent(house, raw))
    changed = signed(house, secret).replace(b"Hi", b"Ho")
    yield "a signed request whose body was changed on the way", said(await sent(house, changed))
    plain = await house.key("machine")
    yield "a key that was made without `--signed`", said(await (await house.ask(plain, chat(stream=False))).answer())
    ran = len(house.sidecar.received)
    order = {"idempotency-key": "order-7"}
    yield "a signed request with `Idempotency-Key: order-7`", said(await sent(house, signed(house, secret, **order)))
    again = signed(house, secret, **order)
    yield "it again, signed anew: the first answer", said(await sent(house, again))
    assert len(house.sidecar.received) == ran + 1
    other = signed(house, secret, BODY.replace(b"Hi", b"Ho"), **order)
    yield "another request with `Idempotency-Key: order-7`", said(await sent(house, other))


async def test_machines_are_answered_as_the_cookbook_says(under: Build) -> None:
    async with under("machines", public_authorities=[]) as house:
        rows = [cookbook.row(asked, (cell, "", "")) async for asked, cell in machines(house)]
    assert cookbook.answers("machines") == rows, "\n".join(["docs/policies.md must say:", *rows])


async def test_a_partner_s_answers_carry_its_headers(under: Build) -> None:
    async with under("partner", limits=Limits()) as house:
        here, elsewhere = [await house.key("partner", allow_from=[net]) for net in ("127.0.0.0/8", "203.0.113.0/24")]
        answers = [await (await house.ask(key, chat(stream=False))).answer() for key in (here, elsewhere)]
    assert [(one.status, one.headers["x-served-by"], one.headers["x-contract"]) for one in answers] == [
        (200, "example.com", "2026-17"),
        (403, "example.com", "2026-17"),
    ]
