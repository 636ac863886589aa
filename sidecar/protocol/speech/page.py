"""The page that readers read: text as it comes, what was read of it, and the pieces that were made of that.

A format is a function that reads a page from its beginning to its end and waits, by `yield`, wherever there is no more
text yet; so it is written as if all of it were there. What it has read and made no piece of is held back.
"""

from collections.abc import Callable, Generator
from typing import Final, TypeVar

from sidecar.protocol.speech.pieces import Kind, Piece
from sidecar.tokenizer.text import unfinished

T = TypeVar("T")
# What waits for text, and gives a T in the end.
Reading = Generator[None, None, T]

SPACE: Final = " \t\r\n"


class MalformedError(Exception):
    """The text is not what its beginning promised."""


class Page:
    """Mutable: `_text` (of which no piece was made), `_at` (how much of it was read), `_ended`, `_pieces`, `_called`
    (whether a call has begun).
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._pieces: list[Piece] = []
        self._called = False

    def add(self, text: str) -> None:
        self._text += text

    def end(self) -> None:
        self._ended = True

    def pieces(self) -> list[Piece]:
        """Those that were made since the last time."""
        made, self._pieces = self._pieces, []
        return made

    @property
    def held(self) -> str:
        """What was read and is in no piece yet."""
        return self._text[: self._at]

    @property
    def unread(self) -> str:
        return self._text[self._at :]

    def read(self, size: int) -> None:
        """Go on by so many characters."""
        self._at += size

    def back(self) -> None:
        """Read what is held once more."""
        self._at = 0

    def give(self, kind: Kind, text: str = "") -> None:
        """Make a piece of what is held; it shows `text`."""
        if text or self._at or kind is Kind.CALL_END:
            self._pieces.append(Piece(kind, text, self._at))
            self._called = self._called or kind is Kind.CALL
        self._text, self._at = self.unread, 0

    def more(self) -> Reading[bool]:
        """Whether anything is left to read."""
        while self._at == len(self._text):
            if self._ended:
                return False
            yield
        return True

    def next(self) -> Reading[str]:
        """The next character, which stays unread; empty at the end."""
        return self._text[self._at] if (yield from self.more()) else ""

    def space(self) -> Reading[None]:
        """Go past white space."""
        while (char := (yield from self.next())) and char in SPACE:
            self.read(1)

    def at(self, *words: str) -> Reading[str]:
        """Which of `words` comes next, and is left unread; empty for none. None may begin another one."""
        while True:
            unread = self.unread
            for word in words:
                if unread.startswith(word):
                    return word
            if self._ended or not any(word.startswith(unread) for word in words):
                return ""
            yield

    def expect(self, word: str) -> Reading[None]:
        """Go past `word`. Raises MalformedError if something else comes."""
        if not (yield from self.at(word)):
            raise MalformedError
        self.read(len(word))

    def skip(self, word: str) -> Reading[bool]:
        """Go past white space and `word`, if they come; else stay. Gives whether they came."""
        before = self._at
        yield from self.space()
        if (yield from self.at(word)):
            self.read(len(word))
            return True
        self._at = before
        return False

    def up_to(self, word: str) -> Reading[str]:
        """Go past `word`, and give what stood before it. Raises MalformedError if it never comes."""
        start = self._at
        while (found := self._text.find(word, self._at)) < 0:
            # All but what may be the beginning of it need not be looked at again.
            self._at = max(start, len(self._text) - len(word) + 1)
            if self._ended:
                raise MalformedError
            yield
        self._at = found + len(word)
        return self._text[start:found]

    def tell(self, kind: Kind, *words: str, trimmed: bool = False) -> Reading[str]:
        """Make pieces of what comes before one of `words`, and give that one, unread; empty if none comes.

        White space before it stays held; that at the end of the answer is not shown if `trimmed`, or behind calls.
        """
        while True:
            text = self.unread
            places = [(place, word) for word in words if (place := text.find(word)) >= 0]
            end, found = min(places, default=(len(text), ""))
            if not found and not self._ended:
                end -= unfinished(text, words)
            shown = text[:end].rstrip(SPACE)
            if self._ended and not found:
                self.read(end)
                self.give(kind, shown if trimmed or self._called else text)
                return ""
            self.read(len(shown))
            self.give(kind, shown)
            if found:
                self.read(end - len(shown))
                return found
            yield


class PageReader:
    """A `Reader` by a format. Mutable: the page, and how far it was read."""

    def __init__(self, form: Callable[[Page], Reading[None]]) -> None:
        self._page = Page()
        self._reading = form(self._page)

    def feed(self, text: str) -> list[Piece]:
        self._page.add(text)
        return self._go_on()

    def flush(self) -> list[Piece]:
        self._page.end()
        return self._go_on()

    def _go_on(self) -> list[Piece]:
        next(self._reading, None)
        return self._page.pieces()


def words(page: Page) -> Reading[None]:
    """The format of an answer that has nothing but words."""
    while (yield from page.more()):
        text = page.unread
        page.read(len(text))
        page.give(Kind.WORDS, text)
