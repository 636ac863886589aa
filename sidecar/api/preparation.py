"""From a body to a plan, in threads: parsing, templating and tokenising may take long, and never touch the event loop.

The prompts of a counted body are kept for a few seconds, so that counting and then running it tokenises once.
"""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from sidecar.api.front import Language
from sidecar.protocol.anthropic import CountRequest, count, read_count, read_message
from sidecar.protocol.chat import read_chat
from sidecar.protocol.completions import read_completion
from sidecar.protocol.embeddings import EmbeddingPlan, EmbeddingRequest, make_embedding_plan, read_embedding
from sidecar.protocol.fields import Fields, decode_object
from sidecar.protocol.plan import Limits, Plan, Prompts, check_model, encode, make_plan
from sidecar.protocol.requests import GenerationRequest
from sidecar.protocol.responses import read_response
from sidecar.protocol.ticket import Ticket
from sidecar.protocol.tokenization import TokenizationRequest, read_detokenize, read_tokenize, tokenization
from sidecar.settings import Api
from sidecar.wire.errors import unavailable
from sidecar.wire.internal import Endpoint

KEPT_S: Final = 5.0
MOST_KEPT: Final = 256
MOST_KEPT_TOKENS: Final = 1 << 20
_READERS: Final[dict[Endpoint, Callable[[Fields, Api], GenerationRequest]]] = {
    Endpoint.CHAT: read_chat,
    Endpoint.COMPLETIONS: read_completion,
    Endpoint.RESPONSES: read_response,
    Endpoint.MESSAGES: read_message,
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept:
    """Prompts and when they may be forgotten, in monotonic seconds."""

    prompts: Prompts
    tokens: int
    until_s: float


class CountedPrompts:
    """The prompts of the bodies counted last, by their digest. Safe from several threads.

    Mutable, under `_lock`: `_kept` (oldest first), `_tokens` (in all of them).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._tokens = 0

    def keep(self, digest: bytes, prompts: Prompts) -> None:
        now_s = self._clock()
        tokens = sum(map(len, prompts))
        with self._lock:
            self._forget(digest)
            self._kept[digest] = Kept(prompts, tokens, now_s + KEPT_S)
            self._tokens += tokens
            while self._kept and (
                len(self._kept) > MOST_KEPT
                or self._tokens > MOST_KEPT_TOKENS
                or next(iter(self._kept.values())).until_s <= now_s
            ):
                self._forget(next(iter(self._kept)))

    def find(self, digest: bytes) -> Prompts | None:
        with self._lock:
            kept = self._kept.get(digest)
            return kept.prompts if kept is not None and kept.until_s > self._clock() else None

    def _forget(self, digest: bytes) -> None:
        kept = self._kept.pop(digest, None)
        if kept is not None:
            self._tokens -= kept.tokens


class Preparation:
    """The room where bodies are read. Mutable: `_waiting`, how many bodies are being read or wait for it."""

    def __init__(self, api: Api, threads: Executor, most_waiting: int, clock: Callable[[], float]) -> None:
        self._api = api
        self._threads = threads
        self._most_waiting = most_waiting
        self._counted = CountedPrompts(clock)
        self._waiting = 0

    async def plan(self, body: bytes, ticket: Ticket, language: Language, limits: Limits, endpoint: Endpoint) -> Plan:
        """Raises ApiError 400, 404, or 503 if too many bodies wait already."""

        def work() -> Plan:
            request = self._read(decode_object(body), limits, endpoint)
            prompts = self._counted.find(_digest(body, endpoint))
            if prompts is None:
                prompts = encode(request, language.tokenizer, limits)
            return make_plan(request, prompts, ticket, limits, language.tokenizer)

        return await self.in_thread(work)

    async def fields(self, body: bytes) -> Fields:
        """Raises ApiError 400, or 503 as `plan` does."""
        return await self.in_thread(lambda: decode_object(body))

    async def embedding_request(self, fields: Fields) -> EmbeddingRequest:
        """Raises ApiError 400, or 503 as `plan` does."""
        return await self.in_thread(lambda: read_embedding(fields, self._api))

    async def embedding_plan(
        self, request: EmbeddingRequest, ticket: Ticket, language: Language, limits: Limits, size: int
    ) -> EmbeddingPlan:
        """As `plan`, for /v1/embeddings; `size` is the length of the model's vectors."""
        return await self.in_thread(lambda: make_embedding_plan(request, ticket, limits, language.tokenizer, size))

    async def tokenization_request(self, body: bytes, *, back: bool) -> TokenizationRequest:
        """A body of /tokenize, or of /detokenize if `back`. Raises ApiError 400, or 503 as `plan` does."""
        read = read_detokenize if back else read_tokenize
        return await self.in_thread(lambda: read(decode_object(body), self._api))

    async def tokenization(self, request: TokenizationRequest, language: Language, limits: Limits) -> bytes:
        """The JSON answer to such a body. Raises ApiError 400, or 503 as `plan` does."""
        return await self.in_thread(lambda: msgspec.json.encode(tokenization(request, language.tokenizer, limits)))

    async def count_request(self, body: bytes) -> CountRequest:
        """A body of /v1/messages/count_tokens. Raises ApiError 400, or 503 as `plan` does."""
        return await self.in_thread(lambda: read_count(decode_object(body), self._api))

    async def message_count(self, request: CountRequest, language: Language, limits: Limits) -> bytes:
        """The JSON answer to such a body. Raises ApiError 400, or 503 as `plan` does."""
        return await self.in_thread(lambda: msgspec.json.encode(count(request, language.tokenizer, limits)))

    async def count(
        self, body: bytes, language: Language, limits: Limits, endpoint: Endpoint, decoded: Fields | None = None
    ) -> int:
        """How many tokens the prompts of a body have. Raises as `plan` does. `decoded` is the body, if read."""

        def work() -> int:
            fields = decode_object(body) if decoded is None else decoded
            prompts = encode(self._read(fields, limits, endpoint), language.tokenizer, limits)
            self._counted.keep(_digest(body, endpoint), prompts)
            return sum(map(len, prompts))

        return await self.in_thread(work)

    def _read(self, fields: Fields, limits: Limits, endpoint: Endpoint) -> GenerationRequest:
        request = _READERS[endpoint](fields, self._api)
        check_model(request.options.model, limits.model)
        return request

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what takes long where the event loop is not held up. Raises ApiError 503 if too much waits for it."""
        if self._waiting >= self._most_waiting:
            raise unavailable("The server is overloaded.", code="server_is_overloaded", retry_after_s=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _digest(body: bytes, endpoint: Endpoint) -> bytes:
    return hashlib.sha256(endpoint.encode() + b":" + body).digest()
