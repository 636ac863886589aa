"""What guards a request on its way: its nonce and its idempotency key, on disk before anything runs."""

import datetime as dt
from typing import Any

import pytest

from proxy.admission.replay import Seal
from proxy.exchange import Principal
from proxy.once import Guard, answered, claims_of, held, keeping, spent
from proxy.store.claims import ClaimTakenError, IdempotencyKey, Nonce
from sidecar.wire.errors import ApiError, unavailable
from tests.fakes.proxy import NOON, FakeClient, FakeGrant

ME = Principal("acc", "key", "t", None)
KEY = IdempotencyKey("k", b"f" * 32, NOON, NOON + dt.timedelta(days=1))
NONCE = Nonce("key", "n" * 16, NOON, NOON + dt.timedelta(seconds=330))


class FakeNonces:
    """`in_reservation` as the test has it; `taken` by another."""

    def __init__(self, *, in_reservation: bool) -> None:
        self.in_reservation = in_reservation
        self.taken = False
        self.told: list[str] = []

    async def seen(self, _new: Nonce) -> bool:
        return self.taken

    async def spend(self, new: Nonce, request_id: str) -> None:
        if self.taken:
            raise ClaimTakenError(new)
        self.told.append(f"spent by {request_id}")

    async def release(self, _new: Nonce) -> None:
        self.told.append("released")


class FakeIdempotency:
    def __init__(self, found: IdempotencyKey | bytes = KEY) -> None:
        self.found = found
        self.keeps = True
        self.kept: list[bytes] = []

    async def claim(self, *_: Any) -> IdempotencyKey | bytes:
        return self.found

    def keeps_answers(self, _principal: Principal) -> bool:
        return self.keeps

    async def keep(self, _key: IdempotencyKey, _request_id: str, answer: bytes) -> None:
        self.kept.append(answer)


def guard(*, nonces: FakeNonces | None = None, idempotency: Any = None, word: str | None = "order-7") -> Guard:
    client = FakeClient()
    client.sent_headers = {} if word is None else {"idempotency-key": (word,)}
    seal = None if nonces is None else Seal(NONCE, nonces, 1.0)
    return Guard(ME, client, "req_1", seal, idempotency or FakeIdempotency())


async def test_most_requests_have_none_and_pass() -> None:
    assert claims_of(None) == ()
    assert await answered(None, "/v1/completions", b"") is None
    assert keeping(None, None, stream=False) is None
    await spent(None)
    async with held(None, FakeGrant()):
        pass


async def test_r_claims_travel_with_the_reservation_and_are_on_disk_before_anything_runs() -> None:
    nonces, grant = FakeNonces(in_reservation=True), FakeGrant()
    guarded = guard(nonces=nonces)
    assert await answered(guarded, "/v1/completions", b"{}") is None
    assert claims_of(guarded) == (NONCE, KEY)
    grant.durable_error = unavailable("away", code="storage_unavailable", retry_after_s=1)
    with pytest.raises(ApiError, match="away"):
        async with held(guarded, grant):
            pytest.fail("it ran")
    assert nonces.told == []


async def test_r_a_nonce_that_does_not_travel_is_spent_before_anything_runs() -> None:
    nonces = FakeNonces(in_reservation=False)
    guarded = guard(nonces=nonces, word=None)
    assert claims_of(guarded) == ()
    async with held(guarded, FakeGrant()):
        assert nonces.told == ["spent by req_1"]
    nonces.taken = True
    with pytest.raises(ApiError, match="received before"):
        async with held(guarded, FakeGrant()):
            pytest.fail("it ran")


async def test_a_nonce_is_given_back_when_nothing_ran_and_not_when_something_did() -> None:
    nonces = FakeNonces(in_reservation=False)
    with pytest.raises(ApiError):
        async with held(guard(nonces=nonces), FakeGrant()):
            raise unavailable("full", code="server_is_overloaded", retry_after_s=1)
    assert nonces.told == ["spent by req_1", "released"]
    with pytest.raises(RuntimeError):
        async with held(guard(nonces=nonces), FakeGrant()):
            raise RuntimeError
    assert nonces.told[2:] == ["spent by req_1"]


async def test_r_an_answer_that_is_given_again_uses_the_nonce_up() -> None:
    nonces = FakeNonces(in_reservation=True)
    guarded = guard(nonces=nonces, idempotency=FakeIdempotency(b"stored"))
    assert await answered(guarded, "/v1/completions", b"{}") == b"stored"
    assert nonces.told == ["spent by req_1"]
    nonces.taken = True
    with pytest.raises(ApiError, match="received before"):
        await answered(guarded, "/v1/completions", b"{}")


@pytest.mark.parametrize(("word", "stream", "keeps"), [(None, False, True), ("k", True, True), ("k", False, False)])
async def test_an_answer_is_kept_only_with_a_key_whole_and_where_the_tier_says_so(
    word: str | None, *, stream: bool, keeps: bool
) -> None:
    idempotency = FakeIdempotency()
    idempotency.keeps = keeps
    guarded = guard(idempotency=idempotency, word=word)
    await answered(guarded, "/v1/completions", b"{}")
    assert keeping(guarded, None, stream=stream) is None


async def test_an_answer_is_kept_after_it_was_kept_for_its_own_ends() -> None:
    idempotency, told = FakeIdempotency(), []

    async def keep(answer: bytes) -> None:
        told.append((answer, list(idempotency.kept)))

    guarded = guard(idempotency=idempotency)
    await answered(guarded, "/v1/responses", b"{}")
    both = keeping(guarded, keep, stream=False)
    assert both is not None
    await both(b"answer")
    assert (told, idempotency.kept) == ([(b"answer", [])], [b"answer"])
