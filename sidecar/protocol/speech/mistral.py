"""Calls as Mistral's models write them: `[TOOL_CALLS]` before an array of JSON objects, or before each call's name.

The newer ones write `[TOOL_CALLS]name[ARGS]{…}`, some without `[ARGS]`, some with `[CALL_ID]` and an id before it.
"""

from typing import Final

from sidecar.protocol.speech.calls import Schemas, call, json_calls, told
from sidecar.protocol.speech.page import Page, Reading

BEGIN: Final = "[TOOL_CALLS]"
CALL_ID: Final = "[CALL_ID]"
ARGS: Final = "[ARGS]"
MARKERS: Final = (BEGIN, CALL_ID, ARGS)


def mistral(page: Page, offered: Schemas) -> Reading[None]:
    def calls(_: str) -> Reading[None]:
        yield from page.space()
        if (yield from page.next()) in ("[", "{"):
            yield from json_calls(page, offered)
            return
        name = yield from _name(page)
        if (yield from page.skip(CALL_ID)):
            yield from page.space()
            yield from _name(page)
        yield from page.skip(ARGS)
        yield from call(page, name, offered)

    yield from told(page, (BEGIN,), calls)


def _name(page: Page) -> Reading[str]:
    name = ""
    while (char := (yield from page.next())) and (char.isalnum() or char in "_-"):
        name += char
        page.read(1)
    return name
