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


class Rendering(msgspec.Struct, frozen=True):
    """What a chat template is given beside the messages.

    `continue_final_message`: the last message stays open, and the answer goes on from it. `reasoning_effort` is only
    for a template that knows it; `variables` are for any.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: dict[str, Scalar] = {}
    reasoning_effort: str | None = None
    documents: tuple[dict[str, str], ...] = ()


PLAIN: Final = Rendering()
