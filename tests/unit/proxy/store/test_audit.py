from typing import Any

import pytest
from sqlalchemy import text

from proxy.store.audit import MAX_SHOWN


async def tamper(store: Any, statement: str) -> None:
    """Change the books behind the ledger's back."""
    async with store.database.write() as connection:
        assert (await connection.execute(text(statement))).rowcount > 0


async def two_requests(store: Any, make: Any) -> None:
    """One settled at 10 + 5 of 100 tokens, one open with 30."""
    await store.boots.begin(make.boot("boot_1"))
    await store.ledger.reserve(make.entry("req_a", 100))
    await store.ledger.settle(make.settled("req_a", 10, 5))
    await store.ledger.reserve(make.entry("req_b", 30))
    assert await store.ledger.check() == []


@pytest.mark.parametrize(
    ("tampering", "says"),
    [
        ("UPDATE quota SET settled_tokens = 16", "off by 1 settled and 0 reserved tokens"),
        ("UPDATE quota SET reserved_tokens = 0", "off by 0 settled and -30 reserved tokens"),
        ("UPDATE quota SET settled_requests = 2", "1 settled and 0 reserved requests"),
        ("UPDATE quota SET reserved_requests = 0", "0 settled and -1 reserved requests"),
        ("UPDATE quota SET settled_prompt_tokens = 9", "not the sum of its ledger rows"),
        ("UPDATE quota SET settled_cached_tokens = 1", "not the sum of its ledger rows"),
        ("DELETE FROM quota", "off by -15 settled and -30 reserved tokens"),
        ("DELETE FROM ledger", "off by 15 settled and 30 reserved tokens"),
        ("UPDATE ledger SET period = '2026-12'", "key_a in 2026-12: the quota is not the sum"),
        ("UPDATE ledger SET ended = NULL", "req_a: state settled does not agree with its time of ending"),
        ("UPDATE ledger SET ended = created WHERE state = 'reserved'", "req_b: state reserved does not agree"),
        (
            "UPDATE ledger SET prompt_tokens = 1 WHERE state = 'reserved'",
            "req_b: state reserved, and yet it is charged",
        ),
        ("UPDATE ledger SET state = 'void' WHERE state = 'settled'", "req_a: state void, and yet it is charged"),
        ("UPDATE ledger SET est_tokens = 14 WHERE state = 'settled'", "req_a: charged more than was reserved"),
        (
            "UPDATE ledger SET cached_tokens = 11 WHERE state = 'settled'",
            "req_a: charged more than was reserved, or more",
        ),
        ("UPDATE ledger SET status = 499 WHERE state = 'settled'", "req_a: answered completely, and yet not settled"),
        ("UPDATE ledger SET state = 'forced' WHERE state = 'settled'", "with status 200 but forced"),
        ("UPDATE boot SET ended = started", "req_b: left open by boot_1, which ended in order"),
    ],
)
async def test_a_broken_law_is_told(store: Any, make: Any, tampering: str, says: str) -> None:
    await two_requests(store, make)
    await tamper(store, tampering)
    problems = await store.ledger.check()
    assert any(says in problem for problem in problems), problems


async def test_many_broken_rows_are_told_in_short(store: Any, make: Any) -> None:
    for number in range(MAX_SHOWN + 3):
        await store.ledger.reserve(make.entry(f"req_{number}", 1))
    await tamper(store, "UPDATE ledger SET ended = created")
    problems = await store.ledger.check()
    assert len(problems) == MAX_SHOWN + 1
    assert problems[-1] == "… and 3 more like the last"
