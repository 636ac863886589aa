"""The metrics page through the real edge: strangers cannot make it grow, and many keys do not either."""

import random
import re
from urllib.parse import quote

import pytest

from tests.wire.proxy.house import House, chat, request

STRANGE = 5000
AT_ONCE = 50
# What a client could hope to see again on the page.
ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789/._-é"\\{}'


async def page(house: House) -> str:
    wire = await house.connect(admin=True)
    await wire.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await wire.answer()
    assert answer.status == 200
    return answer.body.decode()


def series(text: str) -> set[str]:
    """Every series of the page, without its value."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


async def ask_all(house: House, requests: list[bytes]) -> dict[int, int]:
    """Ask one after the other on one connection, many of them sent ahead. Gives how often each status came."""
    statuses: dict[int, int] = {}
    wire = await house.connect()
    for begin in range(0, len(requests), AT_ONCE):
        some = requests[begin : begin + AT_ONCE]
        await wire.send(b"".join(some))
        for _ in some:
            status = (await wire.answer()).status
            statuses[status] = statuses.get(status, 0) + 1
    await wire.close()
    return statuses


@pytest.mark.timeout(300)
async def test_a6_five_thousand_random_paths_and_models_add_no_series(house: House) -> None:
    rng = random.Random(6)

    def word() -> str:
        return "".join(rng.choices(ALPHABET, k=rng.randint(1, 40)))

    key = await house.key()
    await (await house.ask(key)).answer()
    words = [word() for _ in range(STRANGE)]
    paths = [request(key, path=f"/{quote(name)}", method=rng.choice(["GET", "POST"])) for name in words[::2]]
    models = [request(key, chat(model=name, stream=False)) for name in words[1::2]]
    # One of each is what may add a series: an endpoint that is none, a model that is none.
    await ask_all(house, paths[:20] + models[:20])
    before = series(await page(house))
    statuses = await ask_all(house, paths + models)
    assert sum(statuses.values()) == STRANGE
    assert set(statuses) <= {400, 404, 405}
    text = await page(house)
    assert series(text) - before == set()
    assert not [name for name in words if len(name) > 8 and name in text]
    counted = re.findall(r'^tollhouse_proxy_requests_total{.*model="_other".*} (\d+)', text, re.MULTILINE)
    assert sum(map(int, counted)) >= STRANGE


async def test_the_page_of_fifty_keys_has_less_than_two_thousand_lines(house: House) -> None:
    keys = [await house.key(("open", "storing", "few", "upto", "under")[number % 5]) for number in range(50)]
    for key in keys:
        wire = await house.connect()
        for stream in (True, False):
            await wire.send(request(key, chat(stream=stream)))
            await wire.answer()
        await wire.send(request(key, method="GET", path="/v1/models"))
        await wire.answer()
        await wire.close()
    text = await page(house)
    assert 'tollhouse_proxy_active_clients{window="5m"} 50.0' in text
    assert len(text.splitlines()) < 2000
    assert not [key for key in keys if key.removeprefix("sk-th_").partition("_")[0] in text]
