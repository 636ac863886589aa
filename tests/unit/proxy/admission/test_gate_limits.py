"""What the gate says of a key's limits before anything is sized: the same refusals, and nothing taken."""

from collections.abc import Callable
from typing import Any

import pytest

from sidecar.wire.errors import ApiError

Build = Callable[..., Any]
LIMITS = [
    ({"requests_per_minute": 1}, "rate_limit_exceeded"),
    ({"concurrency": 1}, "concurrency_limit_exceeded"),
    ({"monthly_requests": 1}, "insufficient_quota"),
]


@pytest.mark.parametrize(("limits", "code"), LIMITS)
async def test_c2_a_key_at_a_limit_is_refused_before_it_causes_work(
    build: Build, limits: dict[str, int], code: str
) -> None:
    house = build(**limits)
    before = house.consumed()
    await house.gate.check_limits(house.principal(), "m")
    assert house.consumed() == before
    await house.admit()
    before = house.consumed()
    with pytest.raises(ApiError) as caught:
        await house.gate.check_limits(house.principal(), "m")
    assert (caught.value.status, caught.value.code) == (429, code)
    await house.gate.check_limits(house.principal(key_id="other"), "m")
    assert house.consumed() == before
