"""The quota book: read from the ledger once, and moved by exactly what the ledger is told."""

import asyncio
import datetime as dt
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from proxy.admission.quota import QuotaBook
from proxy.store.database import StorageError


@dataclass(frozen=True)
class Standing:
    settled_tokens: int = 0
    reserved_tokens: int = 0
    settled_requests: int = 0
    reserved_requests: int = 0


class Payer(NamedTuple):
    key_id: str
    account_id: str
    period: str


K = Payer("k", "a", "2026-11")
SISTER = Payer("sister", "a", "2026-11")
DECEMBER = Payer("k", "a", "2026-12")


class FakeLedger:
    """Answers when it is let; counts how often it is asked."""

    def __init__(self, standing: Standing | None = None) -> None:
        self.answer = standing or Standing()
        self.of_account = self.answer
        self.asked: list[tuple[str, str]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def standing(self, key_id: str, period: str) -> Standing:
        self.asked.append((key_id, period))
        answer = self.answer
        await self.open.wait()
        return answer

    async def account_standing(self, account_id: str, period: str) -> Standing:
        self.asked.append((account_id, period))
        answer = self.of_account
        await self.open.wait()
        return answer


class Clock:
    seconds = 0.0

    def monotonic(self) -> float:
        return 100.0 + self.seconds

    def now(self) -> dt.datetime:
        raise NotImplementedError


async def primed(standing: Standing | None = None) -> QuotaBook:
    book = QuotaBook(FakeLedger(standing), Clock())
    await book.prime(K)
    return book


def used(book: QuotaBook, payer: Payer = K, *, account: bool = False) -> tuple[int, int]:
    tokens = book.peek_tokens(payer, None, 0, account=account).used
    return book.peek_requests(payer, None, account=account).used, tokens


async def test_it_begins_where_the_ledger_stands() -> None:
    book = await primed(Standing(100, 20, 5, 1))
    assert used(book) == (6, 120)
    assert book.peek_tokens(K, 130, 10).fits
    assert not book.peek_tokens(K, 129, 10).fits
    assert book.peek_requests(K, 7).fits
    assert not book.peek_requests(K, 6).fits


async def test_the_ledger_is_asked_once() -> None:
    ledger = FakeLedger()
    book = QuotaBook(ledger, Clock())
    for _ in range(3):
        await book.prime(K)
    assert ledger.asked == [("a", "2026-11"), ("k", "2026-11")]


async def test_a_late_answer_does_not_undo_a_reservation() -> None:
    ledger = FakeLedger()
    ledger.open.clear()
    book = QuotaBook(ledger, Clock())
    primes = [asyncio.create_task(book.prime(K)) for _ in range(2)]
    await asyncio.sleep(0)
    ledger.open.set()
    await primes[0]
    book.commit(K, 10)
    await primes[1]
    assert used(book) == (1, 10)


@pytest.mark.parametrize(
    ("end", "requests", "tokens"),
    [
        (lambda book: book.settle(K, reserved=30, used=12), 1, 12),
        (lambda book: book.settle(K, reserved=30, used=44), 1, 44),
        (lambda book: book.void(K, reserved=30), 0, 0),
    ],
)
async def test_an_end_leaves_what_was_used(end: object, requests: int, tokens: int) -> None:
    book = await primed()
    book.commit(K, 50)
    book.shrink(K, 20)
    assert used(book) == (1, 30)
    assert callable(end)
    end(book)
    assert used(book) == (requests, tokens)


async def test_months_do_not_share() -> None:
    book = await primed()
    book.commit(K, 50)
    await book.prime(DECEMBER)
    book.commit(DECEMBER, 7)
    book.settle(K, reserved=50, used=50)
    assert used(book, DECEMBER) == (1, 7)
    assert used(book) == (1, 50)


async def test_lines_of_past_months_are_forgotten_unless_something_runs() -> None:
    book = QuotaBook(FakeLedger(), Clock())
    for number in range(1000):
        await book.prime(Payer(f"key {number}", "a", "2026-09"))
    book.commit(Payer("key 5", "a", "2026-09"), 10)
    for period in ("2026-10", "2026-11"):
        for number in range(20):
            await book.prime(Payer(f"key {number}", "a", period))
    assert book.peek_tokens(Payer("key 5", "a", "2026-09"), None, 0).used == 10
    with pytest.raises(KeyError):
        book.peek_tokens(Payer("key 6", "a", "2026-09"), None, 0)
    assert book.peek_tokens(Payer("key 6", "a", "2026-10"), None, 0).used == 0


async def test_an_accounts_line_moves_with_each_of_its_keys() -> None:
    ledger = FakeLedger()
    ledger.of_account = Standing(100, 0, 5, 0)
    book = QuotaBook(ledger, Clock())
    await book.prime(K)
    await book.prime(SISTER)
    assert ledger.asked.count(("a", "2026-11")) == 1
    book.commit(K, 50)
    book.commit(SISTER, 20)
    assert (used(book), used(book, SISTER)) == ((1, 50), (1, 20))
    assert used(book, account=True) == used(book, SISTER, account=True) == (7, 170)
    book.shrink(K, 10)
    book.settle(K, reserved=40, used=30)
    book.void(SISTER, reserved=20)
    assert used(book, account=True) == (6, 130)


async def test_an_accounts_late_answer_does_not_undo_what_its_other_key_reserved() -> None:
    ledger = FakeLedger()
    ledger.open.clear()
    book = QuotaBook(ledger, Clock())
    primes = [asyncio.create_task(book.prime(payer)) for payer in (K, SISTER)]
    await asyncio.sleep(0)
    ledger.open.set()
    await primes[0]
    book.commit(K, 10)
    await primes[1]
    assert used(book, SISTER, account=True) == (1, 10)


async def test_a_book_that_others_write_to_is_read_again_after_a_while() -> None:
    ledger, clock = FakeLedger(Standing(10)), Clock()
    book = QuotaBook(ledger, clock, fresh_s=1.0)
    await book.prime(K)
    book.commit(K, 5)
    ledger.answer = ledger.of_account = Standing(70, 5, 2, 1)
    clock.seconds = 0.9
    await book.prime(K)
    assert used(book) == (1, 15)
    clock.seconds = 1.0
    await asyncio.gather(book.prime(K), book.prime(K))
    assert used(book) == used(book, account=True) == (3, 75)
    assert ledger.asked == [("a", "2026-11"), ("k", "2026-11")] * 2


async def test_what_moves_while_the_ledger_is_asked_again_counts_too() -> None:
    ledger, clock = FakeLedger(), Clock()
    book = QuotaBook(ledger, clock, fresh_s=1.0)
    await book.prime(K)
    clock.seconds = 2.0
    ledger.answer = ledger.of_account = Standing(70)
    ledger.open.clear()
    again = asyncio.create_task(book.prime(K))
    await asyncio.sleep(0)
    book.commit(K, 5)
    ledger.open.set()
    await again
    assert used(book, account=True) == (1, 75)


async def test_a_book_that_is_doubted_is_read_again_at_once() -> None:
    ledger = FakeLedger()
    book = QuotaBook(ledger, Clock())
    await book.prime(K)
    ledger.answer = ledger.of_account = Standing(70)
    book.doubt(K)
    await book.prime(K)
    assert used(book) == used(book, account=True) == (0, 70)


async def test_a_ledger_that_cannot_be_asked_again_leaves_the_book_as_it_is() -> None:
    ledger = FakeLedger(Standing(10))
    book = QuotaBook(ledger, Clock())
    await book.prime(K)
    book.doubt(K)

    async def away(_who: str, _period: str) -> Standing:
        raise StorageError("away")

    ledger.standing = ledger.account_standing = away  # type: ignore[method-assign]  # it is away from now on
    await book.prime(K)
    assert used(book) == (0, 10)
