"""Reasoning: `<think>…</think>` before the answer proper (Qwen3, DeepSeek-R1, Phi-4-reasoning and their kin).

Some templates write the first marker themselves, at the end of the prompt, and the answer begins inside. White space
around the markers is not shown. An answer that begins with something else has no thoughts.
"""

from collections.abc import Callable
from typing import Final

from sidecar.protocol.speech.page import SPACE, Page, Reading
from sidecar.protocol.speech.pieces import Kind

BEGIN: Final = "<think>"
END: Final = "</think>"
MARKERS: Final = (BEGIN, END)


def thoughts(page: Page, inside: bool, then: Callable[[Page], Reading[None]]) -> Reading[None]:
    """Read thoughts, if the answer begins with them; what follows is for `then`."""
    yield from page.space()
    if (yield from page.at(BEGIN)):
        page.read(len(BEGIN))
        yield from page.space()
    elif not inside:
        page.back()
        yield from then(page)
        return
    page.give(Kind.THOUGHT)
    if (yield from page.tell(Kind.THOUGHT, END, trimmed=True)):
        page.read(len(END))
        yield from page.space()
        page.give(Kind.THOUGHT)
    yield from then(page)


def is_left_open(text: str) -> bool:
    """Whether a text that an answer goes on from ends inside its thoughts."""
    return text.rfind(BEGIN) > text.rfind(END)


def ends_open(prompt: str) -> bool:
    """Whether a prompt's last words begin the thoughts of the answer."""
    return prompt.rstrip(SPACE).endswith(BEGIN)
