"""Keeps a client's words from becoming control tokens: only the chat template may write those.

A client's text in which a control token stands, or that could become a part of one where the template joins texts, gets
the characters in question replaced by private ones before the template runs. The rendered text is then cut at the
control tokens that are left, the template's own; the pieces get their characters back and are tokenised as plain text.
Limits: tokens that the tokenizer does not mark as special (`<think>` in some models) are the model's ordinary words.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Supplementary Private Use Area-A (Unicode 16, section 23.5): no text means anything by them.
_PRIVATE: Final = range(0xF0000, 0xFFFFD)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A special token. `lstrip` and `rstrip`: it takes the white space on that side with it."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


class ControlTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokens: list[ControlToken]) -> None:
        # The longest match wins, as in the tokenizer.
        tokens = sorted(tokens, key=lambda token: -len(token.text))
        self._ids = {token.text: token.id for token in tokens}
        alternatives = [
            (r"\s*" if token.lstrip else "") + f"(?P<t{n}>{re.escape(token.text)})" + (r"\s*" if token.rstrip else "")
            for n, token in enumerate(tokens)
        ]
        # `(?!)` matches nothing: a tokenizer without special tokens.
        self._rendered = re.compile("|".join(alternatives) or "(?!)")
        self._anywhere = re.compile("|".join(f"(?={re.escape(token.text)})" for token in tokens) or "(?!)")
        texts = [token.text for token in tokens]
        self._texts = texts
        self._beginnings = tuple({text[:size] for text in texts for size in range(1, len(text))})
        self._endings = tuple({text[size:] for text in texts for size in range(1, len(text))})

    def risks(self, text: str) -> set[int]:
        """Where to replace a character of a client's text, so that no control token can come of it."""
        places = {match.start() for match in self._anywhere.finditer(text)}
        # Templates trim, so the ends count with and without white space.
        for start, end in ((0, len(text)), (len(text) - len(text.lstrip()), len(text.rstrip()))):
            inner = text[start:end]
            if inner.endswith(self._beginnings):
                places |= {end - len(part) for part in self._beginnings if inner.endswith(part)}
            if inner and (inner.startswith(self._endings) or any(inner in whole for whole in self._texts)):
                places.add(start)
        return places

    def split(self, rendered: str) -> Iterator[str | int]:
        """The rendered text as plain pieces and the ids of the control tokens between them."""
        at = 0
        for match in self._rendered.finditer(rendered):
            if match.start() > at:
                yield rendered[at : match.start()]
            yield self._ids[match.group(str(match.lastgroup))]
            at = match.end()
        if at < len(rendered):
            yield rendered[at:]


class Disguise:
    """Replaces risky characters and puts them back. Mutable: `_private`, the private character of each real one."""

    def __init__(self, control: ControlTokens, texts: list[str]) -> None:
        self._control = control
        used = set().union(*texts) if texts else set()
        self._free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self._private: dict[str, str] = {}

    @property
    def used(self) -> bool:
        return bool(self._private)

    def put_on(self, text: str) -> str:
        risks = self._control.risks(text)
        if not risks:
            return text
        return "".join(self._stand_in(char) if at in risks else char for at, char in enumerate(text))

    def take_off(self, text: str) -> str:
        return text.translate({ord(private): real for real, private in self._private.items()})

    def _stand_in(self, char: str) -> str:
        if char not in self._private:
            self._private[char] = next(self._free)
        return self._private[char]
