"""The bytes of an HTTP/1.1 answer, read strictly (RFC 9112). Pure: no socket, no clock.

An answer has a length, or is chunked, or lasts until its connection ends; two of these at once are none. What is not
read as it ought to be, is cut short or goes on after its end raises BrokenOffError: it never becomes a shorter answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 4096
_END_OF_LINE: Final = b"\r\n"
_END_OF_HEAD: Final = b"\r\n\r\n"
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([2-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
# A token, a colon, and a value with the space around it (RFC 9110, 5.5 and 5.6.2).
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,12})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
# As nearly all chunks are told: a size, and nothing more.
_PLAIN_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,12})\r\n")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_WITHOUT_BODY: Final = frozenset({204, 304})


class BrokenOffError(ConnectionError):
    """The connection ended before the answer did, or what came is no answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """`headers` by their lower-case names, of each the first. `goes_on`: the connection does, after the answer."""

    status: int
    headers: Mapping[str, str]
    goes_on: bool = False


class Reading:
    """One answer on its way in.

    Mutable: `head`, once it is here; `whole`, once the answer's end is; `_rest`, bytes of a part that is not yet whole;
    `_left`, how many bytes of the body or the chunk are to come, None until the connection ends; `_chunked`; of
    a chunked one `_in_chunk`, from a chunk's size to the end of its line, and `_trailer`, the bytes after the last one.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.whole = False
        self._rest = b""
        self._left: int | None = None
        self._chunked = False
        self._in_chunk = False
        self._trailer: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the answer is whole, and another may come on its connection."""
        return self.whole and self.head is not None and self.head.goes_on

    def feed(self, data: bytes) -> bytes:
        """Take bytes in, give what of the body is in them. Raises BrokenOffError."""
        if self.whole:
            raise BrokenOffError("bytes after the answer's end")
        if self._rest:
            data, self._rest = self._rest + data, b""
        if self.head is None:
            end = data.find(_END_OF_HEAD)
            if end < 0:
                self._keep(data, MAX_HEAD_BYTES)
                return b""
            self._begin(read_head(data[:end]))
            data = data[end + len(_END_OF_HEAD) :]
            if not data:
                return b""
        return self._dechunked(data) if self._chunked else self._counted(data)

    def end(self) -> None:
        """The connection ended. Raises BrokenOffError if that is not where the answer does."""
        if self.head is not None and not self._chunked and self._left is None:
            self.whole = True
        if not self.whole:
            raise BrokenOffError("the connection ended early")

    def _begin(self, head: Head) -> None:
        coding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
        if coding is not None and (coding.lower() != "chunked" or length is not None):
            raise BrokenOffError("a body whose end cannot be told")
        self.head = head
        self._chunked = coding is not None
        if length is not None:
            self._left = int(length)
        if head.status in _WITHOUT_BODY:
            self._left, self._chunked = 0, False
        self.whole = self._left == 0

    def _counted(self, data: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise BrokenOffError("bytes after the answer's end")
            self.whole = self._left == 0
        return data

    def _dechunked(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if not (self._left or self._in_chunk):
                at = self._whole_chunks(data, at, pieces)
                if at == size:
                    break
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(_END_OF_LINE, at)
            if end < 0:
                self._keep(data[at:], MAX_LINE_BYTES)
                break
            self._line(data[at:end])
            at = end + len(_END_OF_LINE)
            if self.whole and at < size:
                raise BrokenOffError("bytes after the answer's end")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _whole_chunks(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take the chunks that lie in `data` with all that belongs to them, but the last; where those end."""
        if self._trailer is not None:
            return at
        while matched := _PLAIN_CHUNK.match(data, at):
            begin = matched.end()
            end = begin + int(matched[1], 16)
            if end == begin or not data.startswith(_END_OF_LINE, end):
                break
            pieces.append(data[begin:end])
            at = end + len(_END_OF_LINE)
        return at

    def _line(self, line: bytes) -> None:
        """A line between chunks: the end of one, the size of the next, or the trailer."""
        if self._trailer is not None:
            self._trailer += len(line)
            if self._trailer > MAX_HEAD_BYTES:
                raise BrokenOffError("a trailer without an end")
            self.whole = not line
        elif self._in_chunk:
            if line:
                raise BrokenOffError("a chunk of another size than it said")
            self._in_chunk = False
        else:
            matched = _CHUNK.fullmatch(line)
            if matched is None:
                raise BrokenOffError("a chunk without a size")
            self._left = int(matched[1], 16)
            self._in_chunk = self._left > 0
            self._trailer = None if self._in_chunk else 0

    def _keep(self, part: bytes, most: int) -> None:
        if len(part) > most:
            raise BrokenOffError("a line without an end")
        self._rest = part


def read_head(head: bytes) -> Head:
    """Of the bytes before the empty line. Raises BrokenOffError, for an interim answer too: nobody asks for one."""
    first, *lines = head.split(_END_OF_LINE)
    status = _STATUS.fullmatch(first)
    if status is None:
        raise BrokenOffError("no status line")
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BrokenOffError("a header that is none")
        name, value = field[1].decode().lower(), field[2].strip(b" \t").decode("latin-1")
        if headers.setdefault(name, value) != value and name in {"content-length", "transfer-encoding"}:
            raise BrokenOffError("two lengths")
    length = headers.get("content-length")
    if length is not None and _LENGTH.fullmatch(length) is None:
        raise BrokenOffError("a length that is no number")
    goes_on = status[1] == b"1" and "connection" not in headers
    return Head(int(status[2]), headers, goes_on)
