"""Bodies are read in threads, a bounded number at once; counted prompts are kept for a while, and bounded too."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from typing_extensions import override

from sidecar.api.front import Language
from sidecar.api.preparation import KEPT_S, MOST_KEPT, MOST_KEPT_TOKENS, CountedPrompts, Preparation
from sidecar.protocol.plan import Limits
from sidecar.protocol.ticket import Ticket
from sidecar.settings import Api
from sidecar.tokenizer.messages import PLAIN, Message, Rendering
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint
from tests.fakes.engine import LetterTokenizer

LIMITS = Limits("m", 100, 1000, (0,))
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).encode()


class FakeClock:
    """Mutable: `now_s`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class HeldTokenizer(LetterTokenizer):
    """Encodes chats only once it is let. Mutable: `go`, and `thread`, where it ran last."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.thread: int | None = None

    @override
    def encode_chat(self, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> list[int]:
        assert self.go.wait(10)
        self.thread = threading.get_ident()
        return [1, 2, 3]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


async def test_c2_bodies_are_read_off_the_loop_and_only_so_many_at_once(threads: ThreadPoolExecutor) -> None:
    tokenizer = HeldTokenizer()
    language = Language(tokenizer, (0,), None, chats=True, created=0)
    preparation = Preparation(Api(), threads, 2, FakeClock())
    waiting = [asyncio.create_task(preparation.count(BODY, language, LIMITS, Endpoint.CHAT)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await preparation.plan(BODY, Ticket("req_1"), language, LIMITS, Endpoint.CHAT)
    assert (caught.value.status, caught.value.code) == (503, "server_is_overloaded")
    tokenizer.go.set()
    assert await asyncio.gather(*waiting) == [3, 3]
    assert tokenizer.thread != threading.get_ident()
    plan = await preparation.plan(BODY, Ticket("req_1"), language, LIMITS, Endpoint.CHAT)
    assert plan.prompt_tokens == 3


async def test_c2_tokens_are_made_off_the_loop_and_wait_with_the_bodies(threads: ThreadPoolExecutor) -> None:
    tokenizer = HeldTokenizer()
    language = Language(tokenizer, (0,), None, chats=True, created=0)
    preparation = Preparation(Api(), threads, 1, FakeClock())
    asked = await preparation.tokenization_request(BODY, back=False)
    waiting = asyncio.create_task(preparation.tokenization(asked, language, LIMITS))
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await preparation.tokenization_request(b'{"tokens":[]}', back=True)
    assert (caught.value.status, caught.value.code) == (503, "server_is_overloaded")
    tokenizer.go.set()
    assert json.loads(await waiting)["tokens"] == [1, 2, 3]
    assert tokenizer.thread != threading.get_ident()


async def test_a_count_of_one_endpoint_is_not_the_other_s(threads: ThreadPoolExecutor) -> None:
    tokenizer = HeldTokenizer()
    tokenizer.go.set()
    language = Language(tokenizer, (0,), None, chats=True, created=0)
    preparation = Preparation(Api(unknown_fields="ignore"), threads, 2, FakeClock())
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "prompt": "abcd"}).encode()
    assert await preparation.count(body, language, LIMITS, Endpoint.CHAT) == 3
    plan = await preparation.plan(body, Ticket("req_1"), language, LIMITS, Endpoint.COMPLETIONS)
    assert plan.prompt_tokens == 4


def test_counted_prompts_are_forgotten_in_time() -> None:
    clock = FakeClock()
    counted = CountedPrompts(clock)
    counted.keep(b"a", ((1, 2),))
    clock.now_s = KEPT_S - 0.01
    assert counted.find(b"a") == ((1, 2),)
    clock.now_s = KEPT_S
    assert counted.find(b"a") is None


def test_counted_prompts_are_bounded_in_number_and_in_tokens() -> None:
    counted = CountedPrompts(FakeClock())
    for at in range(MOST_KEPT + 1):
        counted.keep(str(at).encode(), ((at,),))
    assert counted.find(b"0") is None
    assert counted.find(b"1") == ((1,),)
    counted.keep(b"large", (tuple(range(MOST_KEPT_TOKENS)),))
    assert counted.find(b"1") is None
    assert counted.find(b"large") is not None


def test_counting_a_body_again_does_not_count_it_twice() -> None:
    counted = CountedPrompts(FakeClock())
    half = (tuple(range(MOST_KEPT_TOKENS // 2)),)
    for _ in range(5):
        counted.keep(b"a", half)
    counted.keep(b"b", half)
    assert counted.find(b"a") is not None
