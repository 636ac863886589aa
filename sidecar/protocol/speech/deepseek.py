"""Calls as DeepSeek's models write them, between markers of their own: V3 and R1 in one way, V3.1 in another.

V3: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, and the arguments as a block of Markdown.
V3.1: `<｜tool▁call▁begin｜>name<｜tool▁sep｜>` and the arguments as they are.
"""

from typing import Final

from sidecar.protocol.speech.calls import Schemas, call, told
from sidecar.protocol.speech.page import SPACE, Page, Reading

BEGIN: Final = "<｜tool▁calls▁begin｜>"
END: Final = "<｜tool▁calls▁end｜>"
CALL_BEGIN: Final = "<｜tool▁call▁begin｜>"
CALL_END: Final = "<｜tool▁call▁end｜>"
SEPARATOR: Final = "<｜tool▁sep｜>"
MARKERS: Final = (BEGIN, END, CALL_BEGIN, CALL_END, SEPARATOR)
_FENCE: Final = "```"


def deepseek(page: Page, offered: Schemas) -> Reading[None]:
    def calls(marker: str) -> Reading[None]:
        if marker == BEGIN:
            yield from page.space()
            yield from page.expect(CALL_BEGIN)
        while True:
            yield from _one(page, offered)
            yield from page.skip(CALL_END)
            if not (yield from page.skip(CALL_BEGIN)):
                break
        yield from page.skip(END)

    yield from told(page, (BEGIN, CALL_BEGIN), calls)


def _one(page: Page, offered: Schemas) -> Reading[None]:
    name = yield from page.up_to(SEPARATOR)
    fenced = name.strip(SPACE) == "function"
    if fenced:
        name = yield from page.up_to("\n")
        yield from page.space()
        yield from page.expect(f"{_FENCE}json")
    yield from call(page, name, offered)
    if fenced:
        yield from page.skip(_FENCE)
