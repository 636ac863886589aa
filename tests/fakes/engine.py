"""An engine that does what a test says: by a script for each sequence, or delta by delta."""

import array
import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from sidecar.api.front import Language
from sidecar.grammars.compiler import CompiledGrammar
from sidecar.protocol.speech.dialect import WORDS_ONLY, Dialect
from sidecar.supervisor import EngineLostError
from sidecar.tokenizer.messages import PLAIN, Message, Rendering
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import ApiError
from sidecar.wire.frames import Delta, Finish, Logprobs, Ready, Step, Submit
from sidecar.wire.internal import RequestState, TokenBound

EOS = 0
READY = Ready(
    tier="packed",
    precision="fp32",
    device="cpu",
    dtype="float32",
    max_context=100,
    max_sequences=2,
    vocab_size=0x110000,
    weights_bytes=1000,
    fingerprint="fp_1",
    load_seconds={"weights": 0.5, "warm_up": 0.25},
    kv_bytes=2000,
)


class LetterTokenizer:
    """A token for each character. Mutable: `encoded`, how many texts it was given."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.encoded += 1
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def token_strs(self, ids: list[int]) -> list[str]:
        return [f"<{chr(token)}>" for token in ids]

    def decode_text(self, ids: list[int]) -> tuple[str, list[int]]:
        return "".join(map(chr, ids)), list(range(len(ids)))

    def text_offsets(self, text: str) -> list[int]:
        return list(range(len(text)))

    def spell(self, token: int, *, begins: bool = False) -> bytes:
        return chr(token).encode()

    def encode_chat(self, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> list[int]:
        beside = "".join(f"{name}={value}." for name, value in rendering.variables.items())
        chat = "".join(f"{message.role[0]}:{message.content}." for message in messages)
        return self.encode_text(beside + (chat[:-1] if rendering.continue_final_message else chat))

    def detokenizer(
        self, before: Sequence[int] = (), *, specials: bool = False, markers: Sequence[str] = ()
    ) -> Detokenizer:
        return Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset() if specials else frozenset({EOS}), before)


def language(dialect: Dialect = WORDS_ONLY) -> Language:
    return Language(LetterTokenizer(), (EOS,), TokenBound(1, 2), chats=True, created=1700000000, dialect=dialect)


class FakeSequences:
    """One request's sequences. Mutable: the deltas to come, `cancels` and `left`, for the test to look at, and `flows`,
    which a test clears to have them fetched later.

    The log-probability of the nth token is -n, if it is asked for, and that of the nth token after it in the
    vocabulary -n too. The first delta of a sequence has those of its prompt. `cached_tokens` are told with each first.
    """

    def __init__(self, request_id: str, submits: list[Submit], cached_tokens: int = 0) -> None:
        self.request_id = request_id
        self.submits = submits
        self._cached_tokens = cached_tokens
        self._begun: set[int] = set()
        self.cancels: list[tuple[int | None, int | None]] = []
        self.left = asyncio.Event()
        self.flows = asyncio.Event()
        self.flows.set()
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._unwatched: list[Delta] = []
        self._watcher: Callable[[Delta], None] = self._unwatched.append

    def give(self, text: str, generated: int, finish: Finish | None = None, index: int = 0) -> None:
        ids = [*map(ord, text), *([EOS] if finish is Finish.STOP else [])]
        submit, first = self.submits[index], index not in self._begun
        self._begun.add(index)
        scored = [] if submit.prompt_logprobs is None or not first else submit.prompt_ids[1:]
        self._put(
            Delta(
                self.request_id,
                index,
                ids,
                generated,
                finish,
                logprobs=_logprobs(ids, generated - len(ids), submit.logprobs),
                prompt_logprobs=_logprobs(scored, 0, submit.prompt_logprobs),
                cached_tokens=self._cached_tokens if first else 0,
            )
        )

    def give_all(self, text: str, index: int = 0) -> None:
        """A delta for each letter, then the end of sequence; only the end if no token is wanted."""
        if not self.submits[index].max_new_tokens:
            self.give("", 0, Finish.LENGTH, index)
            return
        for at, letter in enumerate(text, start=1):
            self.give(letter, at, index=index)
        self.give("", len(text) + 1, Finish.STOP, index)

    def give_vector(self, vector: list[float], index: int = 0) -> None:
        """The whole outcome of a text that is embedded."""
        found = array.array("f", vector).tobytes()
        self._put(Delta(self.request_id, index, [], 0, Finish.LENGTH, embedding=found))

    def fail(self, index: int = 0) -> None:
        self._put(Delta(self.request_id, index, [], 0, Finish.ERROR, error="it failed"))

    def lose(self) -> None:
        self._deltas.put_nowait(None)

    def watch(self, told: Callable[[Delta], None]) -> None:
        self._watcher = told
        for delta in self._unwatched:
            told(delta)

    def _put(self, delta: Delta) -> None:
        self._watcher(delta)
        self._deltas.put_nowait(delta)

    def cancel(self, index: int | None = None, generated: int | None = None) -> None:
        self.cancels.append((index, generated))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        delta = await self._deltas.get()
        await self.flows.wait()
        if delta is None:
            raise EngineLostError("the engine process ended")
        return delta


def _logprobs(ids: list[int], before: int, most: int | None) -> list[Logprobs]:
    if most is None:
        return []
    return [
        Logprobs(-float(at), [token + n for n in range(1, most + 1)], [-float(n) for n in range(1, most + 1)])
        for at, token in enumerate(ids, start=before + 1)
    ]


class FakeEngine:
    """Mutable: all that a test sets or looks at. `script` gives the text of each sequence; None leaves it to `give`."""

    def __init__(self, script: Callable[[Submit], str] | None = None) -> None:
        self.script = script
        self.ready = True
        self.reason = ""
        self.info: Ready | None = READY
        self.restarts = 0
        self.engine_pid = 42
        self.last_step: Step | None = None
        self.running = 0
        self.waiting = 0
        self.heartbeat_age_s: float | None = None
        self.slots_path = Path("/nowhere/sidecar.slots")
        self.refusal: ApiError | None = None
        self.opened: asyncio.Queue[FakeSequences] = asyncio.Queue()
        self.cancelled: list[str] = []
        self.grammars: list[CompiledGrammar | None] = []
        self.cached_tokens = 0

    def open(self, request_id: str, submits: list[Submit], grammar: CompiledGrammar | None = None) -> FakeSequences:
        self.grammars.append(grammar)
        if self.refusal is not None:
            raise self.refusal
        sequences = FakeSequences(request_id, submits, self.cached_tokens)
        if self.script is not None:
            for submit in submits:
                sequences.give_all(self.script(submit), submit.index)
        self.opened.put_nowait(sequences)
        return sequences

    def usage(self, request_id: str) -> RequestState:
        return RequestState(known=request_id == "req_known", running=True, prompt_tokens=3, completion_tokens=4)

    async def cancel_request(self, request_id: str) -> RequestState:
        self.cancelled.append(request_id)
        return RequestState(known=True, running=False, prompt_tokens=3, completion_tokens=5)
