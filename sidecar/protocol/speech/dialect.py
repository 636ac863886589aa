"""What is known of a model's way to say things, and how one answer of it is to be read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from sidecar.protocol.speech import deepseek, hermes, llama3, mistral, phi, thoughts
from sidecar.protocol.speech.calls import Schemas
from sidecar.protocol.speech.listener import Listener
from sidecar.protocol.speech.page import Page, PageReader, Reading, words

ReasoningFormat = Literal["auto", "none", "think"]
ToolFormat = Literal["auto", "none", "hermes", "llama3", "mistral", "deepseek", "phi"]


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write calls. `read` reads an answer with them; `markers` are its words that may be control tokens."""

    read: Callable[[Page, Schemas], Reading[None]]
    markers: tuple[str, ...]


FORMS: Final[dict[ToolFormat, Form]] = {
    "hermes": Form(hermes.hermes, hermes.MARKERS),
    "llama3": Form(llama3.llama3, llama3.MARKERS),
    "mistral": Form(mistral.mistral, mistral.MARKERS),
    "deepseek": Form(deepseek.deepseek, deepseek.MARKERS),
    "phi": Form(phi.phi, phi.MARKERS),
}
# What a chat template has that knows a form, the surest first: Qwen's kin mention no other's.
_SIGNS: Final[tuple[tuple[str, ToolFormat], ...]] = (
    (deepseek.CALL_BEGIN, "deepseek"),
    (mistral.BEGIN, "mistral"),
    (phi.BEGIN, "phi"),
    ("<|tool|>", "phi"),
    (hermes.BEGIN, "hermes"),
    (llama3.TAG, "llama3"),
    ("<|start_header_id|>", "llama3"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A model's ways. `thinks`: its answers may begin with thoughts; `tools`: how it writes calls, if it does."""

    thinks: bool = False
    tools: ToolFormat = "none"


# Of a model of which nothing is known.
WORDS_ONLY: Final = Dialect()


def find_dialect(template: str, reasoning: ReasoningFormat, tools: ToolFormat, *, knows_tools: bool) -> Dialect:
    """What a model's chat template tells of it, where the settings leave it open.

    `knows_tools`: the template is given them; else they are described to the model, and Hermes's form with them.
    """
    thinks = any(marker in template for marker in thoughts.MARKERS) if reasoning == "auto" else reasoning == "think"
    if tools == "auto":
        signs = _SIGNS if knows_tools else ()
        tools = next((form for sign, form in signs if sign in template), "hermes")
    return Dialect(thinks, tools)


@dataclass(frozen=True, slots=True)
class Speech:
    """How an answer is read. `thinks`: it may begin with thoughts; `inside`: it begins within them.

    `tools`: how it calls those that are `offered`; `one_call`: it ends with the first one; `calls_reason`: the finish
    reason of one that has calls; `legacy`: they are told as function calls.
    """

    thinks: bool = False
    inside: bool = False
    tools: ToolFormat = "none"
    offered: Schemas | None = None
    one_call: bool = False
    calls_reason: str = "tool_calls"
    legacy: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """The words that must be seen, also where they are control tokens, which have no text otherwise."""
        return (*(thoughts.MARKERS if self.thinks else ()), *(FORMS[self.tools].markers if self.offered else ()))

    def listener(self) -> Listener:
        form = partial(thoughts.thoughts, inside=self.inside, then=self._answer) if self.thinks else self._answer
        return Listener(PageReader(form), one_call=self.one_call)

    def _answer(self, page: Page) -> Reading[None]:
        return FORMS[self.tools].read(page, self.offered) if self.offered else words(page)
