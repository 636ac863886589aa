"""Calls as Llama 3 writes them: the answer is a JSON object with `name` and `parameters`, or several with `;` between.

Behind `<|python_tag|>` such objects may stand anywhere; what else the model writes there, code, is words.
"""

from typing import Final

from sidecar.protocol.speech.calls import Schemas, attempt, json_call, told
from sidecar.protocol.speech.page import Page, Reading

TAG: Final = "<|python_tag|>"
MARKERS: Final = (TAG,)


def llama3(page: Page, offered: Schemas) -> Reading[None]:
    def calls(_: str) -> Reading[None]:
        while True:
            yield from json_call(page, offered)
            if not (yield from page.skip(";")):
                return

    yield from page.space()
    bare = (yield from page.next()) == "{"
    page.back()
    if bare:
        yield from attempt(page, calls(""))
    yield from told(page, (TAG,), calls)
