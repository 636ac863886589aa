"""Signed requests, one attack after the other: each is a 401, in its order, and uses nothing up."""

import base64
import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.admission.replay import Replay, authorities
from proxy.exchange import Principal
from proxy.policy.schema import Policy
from proxy.settings import Replay as Settings
from proxy.signing import ALPHABET, Signer, content_digest, make_secret, public_key, read_secret, signature_base
from proxy.store.claims import Nonce
from sidecar.wire.errors import ApiError
from tests.fakes.proxy import NOON, FakeClient, FakeClock

SECRET = make_secret("0123456789")
OTHER = make_secret("abcdefghij")
HOST = "api.example.com"
PATH = "/v1/chat/completions"
BODY = b'{"model":"m"}'
HOME = "192.0.2.1"
NOON_S = int(NOON.timestamp())
PRINCIPAL = Principal("acc", "0123456789", "t", None, public_keys=(public_key(SECRET),))


class Spy:
    """A store of nonces that says how often it was asked."""

    in_reservation = True

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.asked = 0

    async def seen(self, new: Nonce) -> bool:
        self.asked += 1
        return new.id in self.used

    async def spend(self, new: Nonce, _request_id: str) -> None:
        self.used.add(new.id)

    async def release(self, new: Nonce) -> None:
        self.used.discard(new.id)


class Gate:
    """The room, and a request on its way through it as the hallway leads it."""

    def __init__(self, tier: Any) -> None:
        self.store, self.clock = Spy(), FakeClock()
        self.failures: list[str] = []
        policy = Policy(tiers={"t": tier}, revision="0" * 12)
        self.replay = Replay(
            lambda: policy,
            self.store,
            Settings(),
            self.clock,
            self.failed,
            authorities=authorities([HOST], "127.0.0.1", 8000),
            storage_s=0.1,
        )

    def failed(self, address: str, error: ApiError) -> ApiError:
        self.failures.append(address)
        return error

    def signed(
        self, *, created_s: int = NOON_S, secret: str = SECRET, nonce: str = "n" * 24, **given: str
    ) -> FakeClient:
        """A request of a good client."""
        client = FakeClient()
        client.method, client.target, client.posted = "POST", f"{PATH}?x=1", BODY
        signer = Signer(secret, now_s=lambda: created_s, nonce=lambda: nonce)
        headers = {"host": HOST, **given}
        headers |= signer.headers("POST", f"https://{HOST}{PATH}?x=1", BODY, headers)
        client.sent_headers = {name: (value,) for name, value in headers.items()}
        return client

    async def take(self, client: FakeClient, principal: Principal = PRINCIPAL) -> Any:
        """As the pipeline does: the head, who it is, the nonce, the body."""
        head: Any = client
        authorization = (client.values("authorization") or (None,))[0]
        signature = self.replay.read(head, authorization, HOME)
        seal = await self.replay.expect(principal, head, signature, HOME)
        if seal is not None and seal.verify is not None:
            seal.verify(client.posted)
        return seal

    async def refused(self, client: FakeClient, principal: Principal = PRINCIPAL) -> ApiError:
        """Refused, counted as a failure, and without a nonce that is used up."""
        used = set(self.store.used)
        with pytest.raises(ApiError) as caught:
            await self.take(client, principal)
        assert caught.value.headers()["x-should-retry"] == "false"
        assert caught.value.status == 401
        assert self.store.used == used
        return caught.value


@pytest.fixture
def gate(build: Any) -> Gate:
    return Gate(build(replay="signed").tier)


async def test_r_a_signed_request_is_taken_and_its_nonce_goes_with_the_reservation(gate: Gate) -> None:
    seal = await gate.take(gate.signed())
    (claim,) = seal.claims
    assert (claim.key_id, claim.value, claim.signed) == ("0123456789", "n" * 24, True)
    assert claim.expires.timestamp() == NOON_S + 330
    assert gate.failures == []


async def test_r_a_replay_byte_for_byte_is_refused(gate: Gate) -> None:
    seal = await gate.take(gate.signed())
    await seal.spend("req_1")
    error = await gate.refused(gate.signed())
    assert (error.code, gate.failures) == ("nonce_replayed", [])


Change = Callable[[FakeClient], object]


def header(name: str, *values: str) -> Change:
    return lambda client: client.sent_headers.update({name: values})


def in_header(name: str, old: str, new: str) -> Change:
    def change(client: FakeClient) -> None:
        (value,) = client.sent_headers[name]
        assert old in value
        client.sent_headers[name] = (value.replace(old, new, 1),)

    return change


def attribute(name: str, value: object) -> Change:
    return lambda client: setattr(client, name, value)


ATTACKS: dict[str, Change] = {
    "changed body": attribute("posted", b'{"model":"M"}'),
    "changed body and digest": lambda client: (
        attribute("posted", b"{}")(client),
        header("content-digest", content_digest(b"{}"))(client),
    ),
    "no body": attribute("posted", b""),
    "changed query": attribute("target", f"{PATH}?x=2"),
    "a query that is no text": attribute("target", f"{PATH}?x=1\udcff"),
    "no query": attribute("target", PATH),
    "changed path": attribute("target", "/v1/completions?x=1"),
    "changed method": attribute("method", "PUT"),
    "changed host": header("host", "evil.example.com"),
    "two hosts": header("host", HOST, HOST),
    "no signature": header("signature"),
    "no input": header("signature-input"),
    "no digest": header("content-digest"),
    "another digest": header("content-digest", "sha-512=:YWJj:"),
    "a short digest": header("content-digest", "sha-256=:YWJj:"),
    "another key id": in_header("signature-input", "thp_0123456789", "thp_abcdefghij"),
    "another tag": in_header("signature-input", "tollhouse-v1", "tollhouse-v2"),
    "no tag": in_header("signature-input", ';tag="tollhouse-v1"', ""),
    "no nonce": in_header("signature-input", ';nonce="nnnnnnnnnnnnnnnnnnnnnnnn"', ""),
    "another nonce": in_header("signature-input", "nnnn", "mmmm"),
    "a short nonce": in_header("signature-input", "n" * 24, "n" * 15),
    "a nonce that is a flag": in_header("signature-input", ';nonce="nnnnnnnnnnnnnnnnnnnnnnnn"', ";nonce"),
    "a nonce with a colon": in_header("signature-input", "n" * 24, "n" * 23 + ":"),
    "another algorithm": in_header("signature-input", 'alg="ed25519"', 'alg="hmac-sha256"'),
    "no algorithm": in_header("signature-input", ';alg="ed25519"', ""),
    "a later time": in_header("signature-input", f"created={NOON_S}", f"created={NOON_S + 1}"),
    "a time in words": in_header("signature-input", f"created={NOON_S}", 'created="now"'),
    "a time that is a flag": in_header("signature-input", f"created={NOON_S}", "created"),
    "a parameter more": in_header("signature-input", ";created", ";expires=1;created"),
    "the method is not covered": in_header("signature-input", '"@method" ', ""),
    "the path is not covered": in_header("signature-input", '"@path" ', ""),
    "the body is not covered": in_header("signature-input", ' "content-digest"', ""),
    "the key is not covered": in_header("signature-input", '"authorization" ', ""),
    "covered twice": in_header("signature-input", '"@method"', '"@method" "@method"'),
    "covered in part": in_header("signature-input", '"content-digest"', '"content-digest";key="sha-256"'),
    "more is covered": in_header("signature-input", '"@method"', '"@method" "@scheme"'),
    "an idempotency key that is not covered": header("idempotency-key", "k"),
    "two keys": header("authorization", "Bearer thp_0123456789", "Bearer thp_0123456789"),
    "another spelling of the key": header("authorization", "bearer thp_0123456789"),
    "broken input": header("signature-input", "tollhouse=("),
    "broken signature": header("signature", "tollhouse=:%%%:"),
    "a short signature": header("signature", "tollhouse=:YWJj:"),
    "another label": in_header("signature", "tollhouse=", "other="),
    "a long header": header("signature-input", "a=();" * 1000),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_r_what_was_tampered_with_is_refused_and_counts_as_a_failure(gate: Gate, attack: str) -> None:
    client = gate.signed()
    ATTACKS[attack](client)
    error = await gate.refused(client)
    assert (error.code, gate.failures) == ("invalid_signature", [HOME])


def sign_again(client: FakeClient) -> None:
    """Sign what the input says now, as a careless owner of the key would."""
    text = client.values("signature-input")[0].removeprefix("tollhouse=")
    covered = re.findall(r'"([^"]+)"', text[: text.index(")")])
    fields = {name: values[0] for name, values in client.sent_headers.items()}
    base = signature_base(covered, text, method=client.method, host=HOST, target=client.target, fields=fields)
    value = base64.b64encode(read_secret(SECRET)[1].sign(base)).decode()
    client.sent_headers["signature"] = (f"tollhouse=:{value}:",)


@pytest.mark.parametrize(
    "attack",
    [
        "another key id",
        "another tag",
        "no nonce",
        "a short nonce",
        "a nonce with a colon",
        "another algorithm",
        "no algorithm",
        "a parameter more",
        "the method is not covered",
        "the path is not covered",
        "the body is not covered",
        "the key is not covered",
        "covered twice",
        "an idempotency key that is not covered",
    ],
)
async def test_r_a_good_signature_of_the_wrong_words_is_refused(gate: Gate, attack: str) -> None:
    client = gate.signed()
    sign_again(client)
    assert await gate.take(client)
    ATTACKS[attack](client)
    sign_again(client)
    assert (await gate.refused(client)).code == "invalid_signature"


async def test_r_two_signatures_with_our_tag_are_one_too_many(gate: Gate) -> None:
    first, second = gate.signed(), gate.signed(nonce="m" * 24)
    for name in ("signature-input", "signature"):
        (one,), (two,) = first.sent_headers[name], second.sent_headers[name]
        first.sent_headers[name] = (f"{one}, {two.replace('tollhouse=', 'second=', 1)}",)
    assert (await gate.refused(first)).code == "invalid_signature"


async def test_a_signature_of_somebody_else_with_another_tag_may_stand_beside(gate: Gate) -> None:
    client = gate.signed()
    client.sent_headers["signature-input"] = (
        f'cdn=("@method");created=1;tag="cdn", {client.values("signature-input")[0]}',
    )
    client.sent_headers["signature"] = (f"cdn=:YWJj:, {client.values('signature')[0]}",)
    assert await gate.take(client)


async def test_r_a_signature_by_another_key_is_refused(gate: Gate) -> None:
    other = replace(PRINCIPAL, public_keys=(public_key(OTHER),))
    assert (await gate.refused(gate.signed(), other)).code == "invalid_signature"
    stranger = replace(PRINCIPAL, key_id="zzzzzzzzzz")
    assert (await gate.refused(gate.signed(), stranger)).code == "invalid_signature"


async def test_a_key_that_was_rotated_signs_with_either(gate: Gate) -> None:
    both = replace(PRINCIPAL, public_keys=(public_key(OTHER), public_key(SECRET)))
    assert await gate.take(gate.signed(), both)


@pytest.mark.parametrize(("shift_s", "good"), [(-300, True), (-301, False), (30, True), (31, False), (-(10**9), False)])
async def test_r_a_signature_is_good_in_its_window_only(gate: Gate, *, shift_s: int, good: bool) -> None:
    client = gate.signed(created_s=NOON_S + shift_s)
    if good:
        assert await gate.take(client)
        return
    error = await gate.refused(client)
    assert (error.code, error.headers()["date"]) == ("signature_expired", "Wed, 25 Nov 2026 12:00:00 GMT")
    # Cheap first: neither the nonce was looked for nor the body read.
    assert (gate.store.asked, gate.failures) == (0, [HOME])


async def test_r_the_head_is_judged_before_anybody_is_looked_up(gate: Gate) -> None:
    client = gate.signed()
    ATTACKS["no nonce"](client)
    head: Any = client
    with pytest.raises(ApiError):
        gate.replay.read(head, "Bearer thp_0123456789", HOME)
    assert gate.store.asked == 0


async def test_r_a_stripped_signature_leaves_nothing_to_pass_with(gate: Gate) -> None:
    client = gate.signed()
    client.sent_headers = {"host": (HOST,), "authorization": ("Bearer thp_0123456789",)}
    head: Any = client
    assert (await gate.refused(client)).code == "invalid_signature"
    # Who is a signing key is not let through, however it was recognised.
    with pytest.raises(ApiError):
        await gate.replay.expect(PRINCIPAL, head, None, HOME)


async def test_r_a_tier_that_wants_signatures_takes_no_secrets(gate: Gate) -> None:
    client = FakeClient()
    client.sent_headers = {"authorization": ("Bearer sk-th_x",)}
    error = await gate.refused(client, Principal("acc", "k", "t", None))
    assert error.code == "invalid_signature"
    assert "signed requests only" in error.message
    # A good key with the wrong tier is no attack.
    assert gate.failures == []


@pytest.mark.parametrize("mode", ["off", "duplicate"])
async def test_r_a_key_that_signs_signs_under_every_tier(build: Any, mode: str) -> None:
    gate = Gate(build(replay=mode).tier)
    assert await gate.take(gate.signed())
    bare = FakeClient()
    bare.sent_headers = {"authorization": ("Bearer thp_0123456789",), "x-request-nonce": ("n" * 24,)}
    await gate.refused(bare)


async def test_an_idempotency_key_is_covered(gate: Gate) -> None:
    client = gate.signed(**{"idempotency-key": "order-7"})
    assert await gate.take(client)
    client.sent_headers["idempotency-key"] = ("order-8",)
    await gate.refused(client)


def test_an_api_key_that_looks_like_a_public_id_in_the_middle_is_none(gate: Gate) -> None:
    head: Any = FakeClient()
    assert gate.replay.read(head, f"Bearer sk-th_1234567thp_{ALPHABET[:38]}", HOME) is None
    assert gate.replay.read(head, None, HOME) is None


def test_without_names_the_listener_s_own_address_is_meant() -> None:
    assert authorities([], "0.0.0.0", 8000) >= {"127.0.0.1:8000", "localhost:8000", "[::1]:8000"}  # noqa: S104 a name
    assert authorities([], "127.0.0.1", 443) >= {"localhost"}
    assert authorities(["API.example.com:443"], "127.0.0.1", 8000) == {"api.example.com"}
