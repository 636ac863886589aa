"""The chat template of a model: what it knows, what it is given, and what it makes of a chat.

Transformers renders; here a client's records become what templates expect, with `put_on` applied to each text of the
client, so that none of them becomes a control token (see `sidecar.tokenizer.control`).
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, TemplateError, TemplateSyntaxError

from sidecar.tokenizer.deadline import DeadlineError, Deadlines
from sidecar.tokenizer.messages import PLAIN, Message, Rendering, Scalar, ToolCall
from sidecar.tokenizer.tools import Place, Shown, described, in_system_message, shown_tool, written_out
from sidecar.wire.errors import bad_request

# For one chat, which takes a template some milliseconds.
RENDER_S: Final = 2.0
MAX_RENDERED_CHARS: Final = 8 * 1024 * 1024
# What a template may come to over values that it did not expect, beside errors of its own.
_RENDERING_ERRORS: Final = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_NO_WORDS: Final = frozenset({"whitespace", "comment"})

# Around the tools in Phi-4-mini's template.
_PHI_TOOLS: Final = "<|tool|>"
# What Mistral's templates demand of the ids of calls.
_SHORT_IDS: Final = "length 9"
_SHORT_ID_CHARS: Final = 9

PutOn = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a template.

    `variables`: the names that it uses. `literals`: its strings and the names of attributes, so what it compares a
    client's words with or looks up in a client's objects.
    """

    variables: frozenset[str]
    literals: frozenset[str]


def read_words(source: str) -> Words:
    """As many as there are before a mistake, if there is one: a template that cannot be read renders nothing."""
    variables: set[str] = set()
    literals: set[str] = set()
    before = ""
    with contextlib.suppress(TemplateSyntaxError):
        for _, kind, text in Environment().lex(source):  # noqa: S701  no page is made of it
            if kind == "string":
                literals.add(text[1:-1])
            elif kind == "name":
                (literals if before == "." else variables).add(text)
            if kind not in _NO_WORDS:
                before = text
    return Words(frozenset(variables), frozenset(literals))


_PROBE: Final = "probe"
# A chat that a template which joins arguments to texts cannot render, for they are an object.
_CALLING: Final = (
    Message("user", "x"),
    Message("assistant", "", tool_calls=(ToolCall("c", "f", "{}"),)),
    Message("tool", "x", tool_call_id="c"),
)


class ChatTemplate:
    """Without a template nothing is to be rendered. Mutable: its deadlines."""

    def __init__(self, tokenizer: Any, control: frozenset[str]) -> None:
        """`tokenizer` is Transformers'; `control`: the texts of its control tokens."""
        self.exists = bool(tokenizer.chat_template)
        self._deadlines = Deadlines()
        self._tokenizer = tokenizer
        self._knows_developer = "developer" in json.dumps(tokenizer.chat_template or "")
        self.source = _source(tokenizer)
        words = read_words(self.source)
        self._variables = words.variables
        # A client's word that is one of the template's own stays as it is, or the template would not know it.
        self._own_words = {word for word in words.literals if word.isidentifier()} - control
        self._place = _place_of_tools(words, self.source)
        self._knows_calls = "tool_calls" in words.literals
        self._short_ids = _SHORT_IDS in self.source
        self._joins_arguments = False
        if self._knows_calls and self._rendered(_CALLING) is None:
            self._joins_arguments = True
            self._joins_arguments = self._rendered(_CALLING) is not None
        self._knows_system = _PROBE in (self._rendered((Message("system", _PROBE), Message("user", "x"))) or "")

    @property
    def knows_tools(self) -> bool:
        return self._place is not Place.NOWHERE

    def render(self, messages: tuple[Message, ...], rendering: Rendering, put_on: PutOn) -> str:
        """Raises ApiError 400 for what the template refuses or does not know."""
        if rendering.documents and "documents" not in self._variables:
            raise bad_request(
                "Unsupported parameter: this model's chat template knows no documents.",
                param="documents",
                code="unsupported_parameter",
            )

        def shown(text: str) -> str:
            return text if text in self._own_words else put_on(text)

        variables = {name: _mapped(value, shown) for name, value in self._given(rendering).items()}
        documents = [_mapped(document, shown) for document in rendering.documents]
        tools = [_mapped_object(shown_tool(tool), shown) for tool in rendering.tools]
        try:
            with self._deadlines.within(RENDER_S):
                rendered: str = self._tokenizer.apply_chat_template(
                    self._conversation(messages, tools, put_on),
                    tools=(tools or None) if self._place is Place.VARIABLE else None,
                    documents=documents or None,
                    add_generation_prompt=rendering.add_generation_prompt,
                    continue_final_message=rendering.continue_final_message,
                    tokenize=False,
                    **variables,
                )
        except DeadlineError as exc:
            raise bad_request(
                f"The model's chat template cannot render these messages within {RENDER_S:g} s.", param="messages"
            ) from exc
        except TemplateError as exc:
            raise bad_request(f"The model's chat template refuses these messages: {exc}", param="messages") from exc
        except _RENDERING_ERRORS as exc:
            if rendering.continue_final_message and isinstance(exc, ValueError):
                # Transformers' word for a template in whose rendering the last message cannot be found.
                raise bad_request(
                    "The model's chat template does not show the last message as it is: it cannot be continued.",
                    param="continue_final_message",
                    code="unsupported_parameter",
                ) from exc
            raise bad_request("The model's chat template cannot render these messages.", param="messages") from exc
        if len(rendered) > MAX_RENDERED_CHARS:
            raise bad_request("The rendered messages are too long.", param="messages")
        return rendered

    def _given(self, rendering: Rendering) -> dict[str, Scalar]:
        """The client's variables."""
        effort = rendering.reasoning_effort
        if effort is None or "reasoning_effort" not in self._variables:
            return rendering.variables
        return {**rendering.variables, "reasoning_effort": effort}

    def _conversation(self, messages: tuple[Message, ...], tools: list[Shown], put_on: PutOn) -> list[Shown]:
        """The messages as the template knows them, with what it does not know in words."""
        shown = [self._shown(message, put_on) for message in messages]
        if not self._knows_calls:
            shown = written_out(shown)
        if tools and self._place is Place.SYSTEM:
            return in_system_message(shown, tools)
        if tools and self._place is Place.NOWHERE:
            return described(shown, tools, to_user=not self._knows_system)
        return shown

    def _rendered(self, messages: tuple[Message, ...]) -> str | None:
        """What the template makes of a probe; None where it refuses it."""
        with contextlib.suppress(Exception):
            return self.render(messages, PLAIN, str)
        return None

    def _shown(self, message: Message, put_on: PutOn) -> dict[str, object]:
        """A message as templates know it."""
        developer = message.role == "developer" and not self._knows_developer
        shown: dict[str, object] = {"role": "system" if developer else message.role}
        shown["content"] = put_on(message.content)
        if message.name is not None:
            shown["name"] = put_on(message.name)
        if message.tool_call_id is not None:
            shown["tool_call_id"] = self._call_id(message.tool_call_id, put_on)
        if message.tool_calls:
            shown["tool_calls"] = [self._shown_call(call, put_on) for call in message.tool_calls]
        return shown

    def _shown_call(self, call: ToolCall, put_on: PutOn) -> dict[str, object]:
        arguments = put_on(call.arguments) if self._joins_arguments else _mapped(_parsed(call.arguments), put_on)
        return {
            "id": self._call_id(call.id, put_on),
            "type": "function",
            "function": {"name": put_on(call.name), "arguments": arguments},
        }

    def _call_id(self, name: str, put_on: PutOn) -> str:
        if self._short_ids and not (len(name) == _SHORT_ID_CHARS and name.isalnum()):
            return hashlib.sha256(name.encode()).hexdigest()[:_SHORT_ID_CHARS]
        return put_on(name)


def client_texts(messages: tuple[Message, ...], rendering: Rendering) -> list[str]:
    """Each text of the client that a template may be given."""
    values = [str(value) for value in rendering.variables.values()]
    documents = [text for document in rendering.documents for pair in document.items() for text in pair]
    tools: list[str] = []
    for tool in rendering.tools:
        _mapped(shown_tool(tool), _noting(tools))
    return [*(text for message in messages for text in _texts(message)), *values, *documents, *tools]


def _texts(message: Message) -> list[str]:
    texts = [message.content, message.name or "", message.tool_call_id or ""]
    for call in message.tool_calls:
        texts += [call.id, call.name, call.arguments]
        _mapped(_parsed(call.arguments), _noting(texts))
    return texts


def _noting(texts: list[str]) -> PutOn:
    def note(text: str) -> str:
        texts.append(text)
        return text

    return note


def _parsed(arguments: str) -> object:
    """Templates want an object; what is not JSON stays the text it is."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _mapped(value: object, put_on: PutOn) -> object:
    """The same JSON with `put_on` applied to each string in it, the keys too."""
    if isinstance(value, str):
        return put_on(value)
    if isinstance(value, list):
        return [_mapped(item, put_on) for item in value]
    if isinstance(value, dict):
        return _mapped_object(value, put_on)
    return value


def _mapped_object(value: Shown, put_on: PutOn) -> Shown:
    return {put_on(key): _mapped(item, put_on) for key, item in value.items()}


def _place_of_tools(words: Words, source: str) -> Place:
    if "tools" in words.variables:
        return Place.VARIABLE
    return Place.SYSTEM if "tools" in words.literals and _PHI_TOOLS in source else Place.NOWHERE


def _source(tokenizer: Any) -> str:
    """The template that chats are rendered with; empty without one."""
    with contextlib.suppress(ValueError):
        return str(tokenizer.get_chat_template())
    return ""
