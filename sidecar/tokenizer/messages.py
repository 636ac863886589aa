"""A chat, as the protocol reads it and the chat template gets it. Plain records, no behaviour."""

from typing import Final

import msgspec

Scalar = str | int | float | bool


class ToolCall(msgspec.Struct, frozen=True):
    """A call the assistant made earlier; `arguments` is the JSON text that the client sent back."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One message; the parts of its content are joined already."""

    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; `parameters` is the JSON Schema of its arguments, None if it takes none.

    `strict`: its arguments must fit the schema. Templates are not told.
    """

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool = False


class Rendering(msgspec.Struct, frozen=True):
    """What a chat template is given beside the messages.

    `continue_final_message`: the last message stays open, and the answer goes on from it. `reasoning_effort` is only
    for a template that knows it; `variables` are for any. `tools` are described to the model, whatever its template.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: dict[str, Scalar] = {}
    reasoning_effort: str | None = None
    documents: tuple[dict[str, str], ...] = ()
    tools: tuple[Tool, ...] = ()


PLAIN: Final = Rendering()
