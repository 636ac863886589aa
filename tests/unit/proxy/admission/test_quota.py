"""The quota book: read from the ledger once, and moved by exactly what the ledger is told."""

import asyncio
from dataclasses import dataclass

import pytest

from proxy.admission.quota import QuotaBook


@dataclass(frozen=True)
class Standing:
    settled_tokens: int = 0
    reserved_tokens: int = 0
    settled_requests: int = 0
    reserved_requests: int = 0


class FakeLedger:
    """Answers when it is let; counts how often it is asked."""

    def __init__(self, standing: Standing | None = None) -> None:
        self.answer = standing or Standing()
        self.asked: list[tuple[str, str]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def standing(self, key_id: str, period: str) -> Standing:
        self.asked.append((key_id, period))
        answer = self.answer
        await self.open.wait()
        return answer


async def primed(standing: Standing | None = None) -> QuotaBook:
    book = QuotaBook(FakeLedger(standing))
    await book.prime("k", "2026-11")
    return book


def used(book: QuotaBook, period: str = "2026-11") -> tuple[int, int]:
    tokens = book.peek_tokens("k", period, None, 0).used
    return book.peek_requests("k", period, None).used, tokens


async def test_it_begins_where_the_ledger_stands() -> None:
    book = await primed(Standing(100, 20, 5, 1))
    assert used(book) == (6, 120)
    assert book.peek_tokens("k", "2026-11", 130, 10).fits
    assert not book.peek_tokens("k", "2026-11", 129, 10).fits
    assert book.peek_requests("k", "2026-11", 7).fits
    assert not book.peek_requests("k", "2026-11", 6).fits


async def test_the_ledger_is_asked_once() -> None:
    ledger = FakeLedger()
    book = QuotaBook(ledger)
    for _ in range(3):
        await book.prime("k", "2026-11")
    assert ledger.asked == [("k", "2026-11")]


async def test_a_late_answer_does_not_undo_a_reservation() -> None:
    ledger = FakeLedger()
    ledger.open.clear()
    book = QuotaBook(ledger)
    primes = [asyncio.create_task(book.prime("k", "2026-11")) for _ in range(2)]
    await asyncio.sleep(0)
    ledger.open.set()
    await primes[0]
    book.commit("k", "2026-11", 10)
    await primes[1]
    assert used(book) == (1, 10)


@pytest.mark.parametrize(
    ("end", "requests", "tokens"),
    [
        (lambda book: book.settle("k", "2026-11", reserved=30, used=12), 1, 12),
        (lambda book: book.settle("k", "2026-11", reserved=30, used=44), 1, 44),
        (lambda book: book.void("k", "2026-11", reserved=30), 0, 0),
    ],
)
async def test_an_end_leaves_what_was_used(end: object, requests: int, tokens: int) -> None:
    book = await primed()
    book.commit("k", "2026-11", 50)
    book.shrink("k", "2026-11", 20)
    assert used(book) == (1, 30)
    assert callable(end)
    end(book)
    assert used(book) == (requests, tokens)


async def test_months_do_not_share() -> None:
    book = await primed()
    book.commit("k", "2026-11", 50)
    await book.prime("k", "2026-12")
    book.commit("k", "2026-12", 7)
    book.settle("k", "2026-11", reserved=50, used=50)
    assert used(book, "2026-12") == (1, 7)
    assert used(book) == (1, 50)


async def test_lines_of_past_months_are_forgotten_unless_something_runs() -> None:
    book = QuotaBook(FakeLedger())
    for number in range(1000):
        await book.prime(f"key {number}", "2026-09")
    book.commit("key 5", "2026-09", 10)
    for period in ("2026-10", "2026-11"):
        for number in range(20):
            await book.prime(f"key {number}", period)
    assert book.peek_tokens("key 5", "2026-09", None, 0).used == 10
    with pytest.raises(KeyError):
        book.peek_tokens("key 6", "2026-09", None, 0)
    assert book.peek_tokens("key 6", "2026-10", None, 0).used == 0
