"""Reads what a request used out of the upstream's answer: the usage comment of a stream, the `usage` of a JSON body.
And the response object of one of /v1/responses, if it is to be stored.

Pure: bytes in, bytes out. The states of a stream, in order:
- passing: whole server-sent events go through untouched, the part of one is kept until the rest of it is here;
- held: the usage comment was seen and taken out; all that follows is kept until the caller has settled.
An error event changes no state; it is noted, and goes through like any other. Responses and
Anthropic's messages end with an event of their own, everything else with `[DONE]`.
"""

from typing import Final

import msgspec

from sidecar.wire.anthropic import ERROR_EVENT, MESSAGE_STOP
from sidecar.wire.internal import USAGE_COMMENT, Endpoint, Usage

END_OF_EVENT: Final = b"\n\n"
DONE: Final = b"data: [DONE]\n\n"
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_ERROR_EVENTS: Final = (b'data: {"error"', b"event: response.failed\n", ERROR_EVENT)
_NOTED: Final = (USAGE_COMMENT, *_ERROR_EVENTS)
# The last event of an answer: those that are always the same, and how those begin that tell the answer once more.
_ENDS: Final = (DONE, MESSAGE_STOP)
_ENDS_THAT_TELL: Final = (b"event: response.completed\n", b"event: response.incomplete\n")


class AnswerError(Exception):
    """The upstream's bytes are not an answer in the agreed shape."""


class Sifter:
    """Takes the usage comment out of a stream.

    Mutable: `_part` (an event not yet whole), `_held` (what followed the comment), `usage` (None until it was seen),
    `failed` (an error event went through).
    """

    def __init__(self) -> None:
        self._part = b""
        self._held = b""
        self.usage: Usage | None = None
        self.failed = False

    @property
    def held(self) -> bytes:
        """What came after the usage comment; to be sent once the request is settled."""
        return self._held

    @property
    def complete(self) -> bool:
        """Whether the end of the answer is here: the usage, and after it the closing event."""
        if self.usage is None:
            return False
        return self._held.endswith(_ENDS) or _last_event(self._held).startswith(_ENDS_THAT_TELL)

    def feed(self, data: bytes) -> bytes:
        """Take bytes in, give what may go out now. Raises AnswerError."""
        if self.usage is not None:
            self._held += data
            self._check_size(self._held)
            return b""
        if self._part:
            data = self._part + data
        end = data.rfind(END_OF_EVENT)
        if end < 0:
            self._part = data
            self._check_size(data)
            return b""
        whole, self._part = data[: end + 2], data[end + 2 :]
        if data.find(END_OF_EVENT) == end and not whole.startswith(_NOTED):
            # One event, and nothing but words: as nearly all are.
            return whole
        at = _find_event(whole, USAGE_COMMENT)
        if at >= 0:
            whole = self._take_usage(whole, at)
        for start in _ERROR_EVENTS:
            if _find_event(whole, start) >= 0:
                self.failed = True
        return whole

    def _take_usage(self, whole: bytes, at: int) -> bytes:
        end = whole.index(END_OF_EVENT, at)
        try:
            self.usage = msgspec.json.decode(whole[at + len(USAGE_COMMENT) : end], type=Usage)
        except msgspec.MsgspecError as exc:
            raise AnswerError("the usage comment cannot be read") from exc
        self._held = whole[end + 2 :] + self._part
        self._part = b""
        return whole[:at]

    @staticmethod
    def _check_size(kept: bytes) -> None:
        if len(kept) > MAX_EVENT_BYTES:
            raise AnswerError(f"an event of more than {MAX_EVENT_BYTES} bytes")


def _find_event(events: bytes, start: bytes) -> int:
    """Where the first event that begins with `start` is, or -1. A JSON string holds no raw line feed, so a match
    after an empty line is always the start of an event.
    """
    if events.startswith(start):
        return 0
    at = events.find(END_OF_EVENT + start)
    return at if at < 0 else at + len(END_OF_EVENT)


def _last_event(events: bytes) -> bytes:
    """The event that ends the bytes; empty if one is not yet whole."""
    return events[: -len(END_OF_EVENT)].rpartition(END_OF_EVENT)[2] if events.endswith(END_OF_EVENT) else b""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Thoughts(msgspec.Struct):
    reasoning_tokens: int | None = None


class _BodyUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Thoughts | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    usage: _BodyUsage
    choices: list[_Choice] = []


class _ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    input_tokens_details: _Details | None = None
    output_tokens_details: _Thoughts | None = None


class _Item(msgspec.Struct):
    type: str = ""


class _Response(msgspec.Struct):
    usage: _ResponseUsage
    status: str = ""
    output: list[_Item] = []


_body_decoder: Final = msgspec.json.Decoder(_Body)
_response_decoder: Final = msgspec.json.Decoder(_Response)
# A response says by its status what the others say by their finish reason.
_FINISH_REASONS: Final = {"completed": "stop", "incomplete": "length"}
_CALLED: Final = "tool_calls"
_STOP_REASONS: Final = {"max_tokens": "length", "tool_use": _CALLED}


class _LastEvent(msgspec.Struct):
    response: msgspec.Raw


class _MessageUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0


class _Message(msgspec.Struct):
    usage: _MessageUsage
    stop_reason: str | None = None


class _EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int


class _Embeddings(msgspec.Struct):
    usage: _EmbeddingUsage


_message_decoder: Final = msgspec.json.Decoder(_Message)
_embeddings_decoder: Final = msgspec.json.Decoder(_Embeddings)


def read_body(body: bytes, endpoint: Endpoint) -> Usage:
    """The usage of a whole JSON answer. Raises AnswerError."""
    try:
        if endpoint is Endpoint.RESPONSES:
            return _of_response(_response_decoder.decode(body))
        if endpoint is Endpoint.MESSAGES:
            return _of_message(_message_decoder.decode(body))
        if endpoint is Endpoint.EMBEDDINGS:
            return Usage(_embeddings_decoder.decode(body).usage.prompt_tokens, 0)
        return _of_choices(_body_decoder.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise AnswerError("the answer has no usage that can be read") from exc


def _of_response(answer: _Response) -> Usage:
    details = answer.usage.input_tokens_details
    called = answer.status == "completed" and any(item.type == "function_call" for item in answer.output)
    return Usage(
        prompt_tokens=answer.usage.input_tokens,
        completion_tokens=answer.usage.output_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        finish_reason=_CALLED if called else _FINISH_REASONS.get(answer.status, ""),
        reasoning_tokens=_thought(answer.usage.output_tokens_details),
    )


def _of_message(answer: _Message) -> Usage:
    """Tokens that the prefix cache had are told apart there."""
    usage = answer.usage
    return Usage(
        prompt_tokens=usage.input_tokens + usage.cache_read_input_tokens,
        completion_tokens=usage.output_tokens,
        cached_tokens=usage.cache_read_input_tokens,
        finish_reason=_STOP_REASONS.get(answer.stop_reason or "", "stop"),
    )


def _of_choices(answer: _Body) -> Usage:
    details = answer.usage.prompt_tokens_details
    return Usage(
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        finish_reason=(answer.choices[0].finish_reason or "") if answer.choices else "",
        reasoning_tokens=_thought(answer.usage.completion_tokens_details),
    )


def _thought(told: _Thoughts | None) -> int:
    return 0 if told is None else told.reasoning_tokens or 0


def told_response(answer: bytes, *, stream: bool) -> bytes:
    """The response object of an answer of /v1/responses, or of the held end of its stream. Raises AnswerError."""
    if not stream:
        return answer
    try:
        return bytes(msgspec.json.decode(_last_event(answer).partition(b"\ndata: ")[2], type=_LastEvent).response)
    except msgspec.MsgspecError as exc:
        raise AnswerError("the last event tells no response") from exc
