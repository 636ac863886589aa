"""Calls as Hermes, Qwen and many others write them: `<tool_call>` and `</tool_call>` around a JSON object.

Qwen3-Coder writes `<function=…>` and `<parameter=…>` between them instead; see `qwen_xml`.
"""

from typing import Final

from sidecar.protocol.speech.calls import Schemas, json_calls, told
from sidecar.protocol.speech.page import Page, Reading
from sidecar.protocol.speech.qwen_xml import FUNCTION, xml_call

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"
MARKERS: Final = (BEGIN, END)


def hermes(page: Page, offered: Schemas) -> Reading[None]:
    def calls(_: str) -> Reading[None]:
        yield from page.space()
        xml = yield from page.at(FUNCTION)
        yield from (xml_call if xml else json_calls)(page, offered)
        yield from page.skip(END)

    yield from told(page, (BEGIN,), calls)
