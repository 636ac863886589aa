"""The messages between the sidecar's front and its engine process, and their framing on a socketpair.

Front → engine: `Submit`, `Cancel`, `Define`, `Forget`, `Shutdown`. Engine → front: `Ready` once, then one `Step` per
engine step, which carries every delta of that step; `Failed` when the process cannot go on. A frame is a 4-byte
big-endian length and a msgpack body.
"""

import enum
import struct
from typing import Final, Generic, TypeVar

import msgspec

from sidecar.wire.grammars import CompilerCommand, CompilerReport

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")

T = TypeVar("T")


class Finish(enum.StrEnum):
    """Why a sequence ended. `stop` and `length` are OpenAI's; the others never reach a client as a finish reason."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class Sampling(msgspec.Struct, frozen=True):
    """How one sequence picks its tokens. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing.

    `seed` is an unsigned 64-bit number, already made distinct for each choice of a request. Presence and frequency
    penalties count the generated tokens (OpenAI), the repetition penalty also those of the prompt (Transformers).
    `logit_bias` is added to the logits, by token id. Before `min_tokens` were generated none of `end_token_ids` is;
    where there are `allowed_token_ids`, no other is. Of `bad_words`, as tokens, the last token is not picked behind the
    others, if those were generated.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    end_token_ids: list[int] = []
    allowed_token_ids: list[int] = []
    bad_words: list[list[int]] = []


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """One sequence to run. A request of `n` choices is `n` sequences that share `request_id`, not `index`.

    A prompt is charged once: only the first choice of it has `counts_prompt`. `logprobs` asks for the log-probability
    of each token that is picked and of so many likeliest ones beside it (None: for nothing), `prompt_logprobs` for the
    same of the prompt's own tokens. The answer follows the grammar of that key, if there is one. What ran under one
    `cache_scope` may reuse the cached prefixes of the same scope.
    An embedding model gets `max_new_tokens` 0.
    """

    request_id: str
    index: int
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    stop_token_ids: list[int]
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline_ms: int | None = None
    counts_prompt: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    cache_scope: str = ""
    grammar: str = ""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End a sequence now. Unknown or ended sequences are ignored.

    `generated` is how many of its tokens count (the front found a stop string: what the engine ran past it is
    discarded, not charged); None counts all that were produced.
    """

    request_id: str
    index: int
    generated: int | None = None


class Define(msgspec.Struct, frozen=True, tag="define"):
    """A grammar that later submits name by its key. `vocabulary` goes with the first of an engine; see `grammars`."""

    key: str
    compiled: bytes
    vocabulary: bytes = b""


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """No later submit names this grammar. Sequences that follow it go on."""

    key: str


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process; running sequences end as cancelled first."""


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probabilities at one position, raw: before temperature, penalties and filters.

    `token` is that of the token that stands there; `top_ids` and `top` are the likeliest ones, best first.
    """

    token: float
    top_ids: list[int] = []
    top: list[float] = []


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one step did for one sequence. The last delta of a sequence, and only that one, has `finish`.

    `generated` is the running total that counts, end-of-sequence token included. `error` goes with `Finish.ERROR`.
    `logprobs`, if asked for, has one entry per token of `token_ids`; `prompt_logprobs` comes in pieces, in order, one
    entry per prompt token from the second one on (the first has none). `cached_tokens`: how much of the prompt came
    from the prefix cache, `waited_us` how many microseconds it waited to be worked on; both told with the first token.
    `embedding`: fp32, little-endian, from an embedding model.
    """

    request_id: str
    index: int
    token_ids: list[int]
    generated: int
    finish: Finish | None = None
    error: str | None = None
    logprobs: list[Logprobs] = []
    prompt_logprobs: list[Logprobs] = []
    cached_tokens: int = 0
    embedding: bytes = b""
    waited_us: int = 0


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and a step has run. `steps_down` says, one line each, why no faster tier was taken.

    `embedding_size` is 0 for a model that generates. `kv_bytes`: what the KV cache may take, with the prefix cache.
    """

    tier: str
    precision: str
    device: str
    dtype: str
    max_context: int
    max_sequences: int
    vocab_size: int
    weights_bytes: int
    fingerprint: str
    load_seconds: dict[str, float]
    steps_down: list[str] = []
    embedding_size: int = 0
    kv_bytes: int = 0


class Step(msgspec.Struct, frozen=True, tag="step"):
    """One engine step: its deltas and the gauges as they stand after it. Durations are in seconds.

    `cached_tokens`: prompt tokens that this step took from the prefix cache, of `queried_tokens` that it looked for;
    `prefix_tokens`: what the cache holds.
    `drafted` and `accepted` count speculated tokens; `preemptions` is a running total.
    `waits_s`: how long each sequence had waited whose first work is in this step; `prefills_s`: how long each took from
    there to its first token, which this step gave it.
    """

    number: int
    deltas: list[Delta]
    running: int
    waiting: int
    prefill_tokens: int
    decode_tokens: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    forward_s: float
    total_s: float
    cached_tokens: int = 0
    prefix_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    preemptions: int = 0
    queried_tokens: int = 0
    waits_s: list[float] = []
    prefills_s: list[float] = []


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine process cannot go on and exits after this frame."""

    message: str


Command = Submit | Cancel | Define | Forget | Shutdown
Report = Ready | Step | Failed


class FrameTooLargeError(ValueError):
    """A length prefix above `MAX_FRAME_BYTES`: the peer is not speaking this protocol."""


class FrameReader(Generic[T]):
    """Cuts a byte stream into decoded frames. Mutable: `_buffer`, the bytes of the frame not yet whole."""

    def __init__(self, message_type: type[T]) -> None:
        self._decoder = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Take `data` in and give the messages it completes.

        Raises FrameTooLargeError, or msgspec.DecodeError for a body that is not a message.
        """
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > MAX_FRAME_BYTES:
                raise FrameTooLargeError(f"frame of {size} bytes")
            end = start + _LENGTH.size + size
            if len(buffer) < end:
                break
            messages.append(self._decoder.decode(bytes(buffer[start + _LENGTH.size : end])))
            start = end
        del buffer[:start]
        return messages


def encode_frame(message: Command | Report | CompilerCommand | CompilerReport) -> bytes:
    """One message as it goes on the wire, length first."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body
