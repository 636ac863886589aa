"""The bytes of single tokens. Pure, over a fast tokenizer's vocabulary.

Three ways of writing bytes as tokens are known: byte-level BPE (GPT-2: a printable character for each byte), byte
fallback (SentencePiece: `<0x0A>`), and plain text with `▁` for a space.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

import tokenizers

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE: Final = "▁"
_BYTES: Final = 256


class Spelling:
    """Immutable."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
        kinds = set(_kinds(json.loads(backend.to_str()).get("decoder")))
        self._byte_level = "ByteLevel" in kinds
        self._bytes = byte_of_characters()

    def bytes_of(self, token: int, *, begins: bool = False) -> bytes:
        """Empty for a number that is no token. `begins`: a text begins with it, where some decoders drop a space."""
        spelt = self._bytes_of(token)
        if begins and spelt.startswith(b" ") and self._backend.decode([token]).encode() == spelt[1:]:
            return spelt[1:]
        return spelt

    def _bytes_of(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        written = self._backend.id_to_token(token)
        if written is None:
            return b""
        if self._byte_level and all(character in self._bytes for character in written):
            return bytes(self._bytes[character] for character in written)
        if found := _BYTE.fullmatch(written):
            return bytes([int(found[1], 16)])
        return written.replace(_SPACE, " ").encode()


def byte_of_characters() -> dict[str, int]:
    """GPT-2's table: printable characters of Latin-1 stand for themselves, the other bytes for characters from 256 on.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, and its published encoder.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(_BYTES + place): byte for place, byte in enumerate(others)}


def _kinds(step: object) -> Iterator[str]:
    """The types of a decoder's steps."""
    if isinstance(step, dict):
        yield str(step.get("type"))
        for inner in step.get("decoders") or ():
            yield from _kinds(inner)
