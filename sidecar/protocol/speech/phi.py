"""Calls as Phi-4-mini writes them: `<|tool_call|>` or `functools` before an array of JSON objects."""

from typing import Final

from sidecar.protocol.speech.calls import Schemas, json_calls, told
from sidecar.protocol.speech.page import Page, Reading

BEGIN: Final = "<|tool_call|>"
END: Final = "<|/tool_call|>"
# What the model was also taught: without an end, and with one that is spelt otherwise.
BARE: Final = "functools"
OTHER_END: Final = "</|tool_call|>"
MARKERS: Final = (BEGIN, END)


def phi(page: Page, offered: Schemas) -> Reading[None]:
    def calls(_: str) -> Reading[None]:
        yield from json_calls(page, offered)
        if not (yield from page.skip(END)):
            yield from page.skip(OTHER_END)

    yield from told(page, (BEGIN, BARE), calls)
