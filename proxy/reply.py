"""What an answer is on the wire (RFC 9112): its head, and chunks. Pure: `proxy.client` writes them.

aiohttp's responses do the same for every kind of answer that there is, and cost a request five times as much.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, cast

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import HttpVersion, HttpVersion10, _serialize_headers
from multidict import CIMultiDict

LAST_CHUNK: Final = b"0\r\n\r\n"
_NO_CONTENT: Final = HTTPStatus.NO_CONTENT.value
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


def head(
    status: int, headers: Mapping[str, str], *, version: HttpVersion, length: int | None, keep_alive: bool
) -> bytes:
    """`length` of None is that of an answer in chunks, or for HTTP/1.0 of one that ends with its connection.

    Raises ValueError if a header holds a control character.
    """
    fields = dict(headers)
    if length is not None:
        # An answer that can have no body does not say how long it is.
        if status != _NO_CONTENT:
            fields["Content-Length"] = str(length)
    elif version != HttpVersion10:
        fields["Transfer-Encoding"] = "chunked"
    fields["Date"] = rfc822_formatted_time()
    if not keep_alive:
        fields["Connection"] = "close"
    elif version == HttpVersion10:
        fields["Connection"] = "keep-alive"
    line = f"HTTP/{version[0]}.{version[1]} {status} {_REASONS.get(status, '')}"
    # Any mapping will do for it, and none of our headers is there twice.
    return _serialize_headers(line, cast("CIMultiDict[str]", fields))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
