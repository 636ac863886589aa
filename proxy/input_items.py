"""The pages of what a stored response was asked, in the shape of OpenAI's list of input items. Pure.

An item's id is made from its place: what a client called it may be anything, and may stand there twice.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from sidecar.wire.errors import ApiError, bad_request

# OpenAI's API reference, "List input items".
DEFAULT_LIMIT: Final = 20
MOST: Final = 100
# The first is meant where none is named.
ORDERS: Final = ("desc", "asc")


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """One page."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def item_list(response_id: str, asked: str, query: Mapping[str, str]) -> ItemList:
    """`asked` is the JSON array of the items. Raises ApiError 400 that names the parameter."""
    limit = _limit(query)
    given = msgspec.json.decode(asked, type=list[dict[str, Any]])
    items = [_item(item, f"{response_id.removeprefix('resp_')}_{place}") for place, item in enumerate(given)]
    if _newest_first(query):
        items.reverse()
    rest = items[_begin([item["id"] for item in items], query.get("after")) :]
    data = rest[:limit]
    ids = [item["id"] for item in data] or [None]
    return ItemList(data=data, first_id=ids[0], last_id=ids[-1], has_more=len(rest) > limit)


def _item(item: dict[str, Any], name: str) -> dict[str, Any]:
    """With all that OpenAI's items have: a kind, an id, a status, and a message's content in parts."""
    if item.get("type", "message") != "message":
        return {**item, "id": f"item_{name}", "status": "completed"}
    content = item.get("content")
    if isinstance(content, str):
        if item.get("role") == "assistant":
            content = [{"type": "output_text", "text": content, "annotations": [], "logprobs": []}]
        else:
            content = [{"type": "input_text", "text": content}]
    return {**item, "type": "message", "id": f"msg_{name}", "status": "completed", "content": content}


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit()):
        raise bad_request("'limit' must be an integer.", param="limit", code="invalid_type")
    # Python refuses to read a number of thousands of digits.
    value = int(text[:20])
    if value < 1:
        raise bad_request("'limit' must be at least 1.", param="limit", code="integer_below_min_value")
    if value > MOST:
        raise bad_request(f"'limit' must be at most {MOST}.", param="limit", code="integer_above_max_value")
    return value


def _newest_first(query: Mapping[str, str]) -> bool:
    order = query.get("order", ORDERS[0])
    if order not in ORDERS:
        raise _invalid("order", "'order' must be 'asc' or 'desc'.")
    return order == ORDERS[0]


def _begin(ids: list[str], after: str | None) -> int:
    """Where the page begins."""
    if after is None:
        return 0
    if after not in ids:
        raise _invalid("after", "'after' must be the id of an item of this response.")
    return ids.index(after) + 1


def _invalid(param: str, message: str) -> ApiError:
    return bad_request(message, param=param, code="invalid_value")
