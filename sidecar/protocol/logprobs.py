r"""Log-probabilities as OpenAI's two endpoints tell them, from the engine's numbers. Pure.

A token is spelt by its bytes. Where they are part of a character, its string shows them as OpenAI's do: `\xf0\x9f` in
chats, `bytes:\xf0\x9f` in completions, whose `top_logprobs` would else have one key for all such tokens. JSON has no
infinity: where a probability is zero, OpenAI sends -9999. Where tokens are called by their ids, the string is vLLM's
`token_id:7`; its bytes stay the token's own.
"""

import math
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from sidecar.wire.frames import Logprobs

_ZERO: Final = -9999.0


class Spell(Protocol):
    """Gives the bytes of a token; see `sidecar.tokenizer.model_tokenizer`."""

    def __call__(self, token: int, *, begins: bool = False) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One token. `logprobs` is None for the first of a prompt, which nothing comes before.

    `offset`: where its text begins, in characters from the start of the prompt. `begins`: no text comes before it.
    """

    token: int
    logprobs: Logprobs | None
    offset: int
    begins: bool = False


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a place in a chat's answer."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of a chat's answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """What a chat's choice has under `logprobs`."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """What a completion's choice has under `logprobs`: arrays side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(entries: tuple[Entry, ...], spell: Spell, *, by_id: bool = False) -> ChatLogprobs:
    return ChatLogprobs([_chat_entry(entry, spell, by_id=by_id) for entry in entries])


def text_logprobs(entries: tuple[Entry, ...], spell: Spell, *, by_id: bool = False) -> TextLogprobs:
    return TextLogprobs(
        tokens=[_id(entry.token) if by_id else _key(spell(entry.token, begins=entry.begins)) for entry in entries],
        token_logprobs=[None if entry.logprobs is None else _finite(entry.logprobs.token) for entry in entries],
        top_logprobs=[_tops(entry, spell, by_id=by_id) for entry in entries],
        text_offset=[entry.offset for entry in entries],
    )


def _chat_entry(entry: Entry, spell: Spell, *, by_id: bool) -> TokenLogprob:
    # Only the first token of an echoed prompt has none, and chats echo nothing.
    found = entry.logprobs or Logprobs(0.0)

    def told(token: int) -> tuple[str, list[int]]:
        spelt = spell(token, begins=entry.begins)
        return _id(token) if by_id else _shown(spelt), list(spelt)

    tops: list[TopLogprob] = []
    for other, logprob in zip(found.top_ids, found.top, strict=True):
        name, spelt = told(other)
        tops.append(TopLogprob(name, _finite(logprob), spelt))
    name, spelt = told(entry.token)
    return TokenLogprob(name, _finite(found.token), spelt, tops)


def _tops(entry: Entry, spell: Spell, *, by_id: bool) -> dict[str, float] | None:
    """The likeliest tokens and the one that stands there; of two with one text the likelier."""
    found = entry.logprobs
    if found is None:
        return None
    tops: dict[str, float] = {}
    for token, value in [*zip(found.top_ids, found.top, strict=True), (entry.token, found.token)]:
        text = _id(token) if by_id else _key(spell(token, begins=entry.begins))
        tops[text] = max(_finite(value), tops.get(text, -math.inf))
    return tops


def _id(token: int) -> str:
    return f"token_id:{token}"


def _shown(spelt: bytes) -> str:
    return spelt.decode("utf-8", "backslashreplace")


def _key(spelt: bytes) -> str:
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return f"bytes:{_shown(spelt)}"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _ZERO
