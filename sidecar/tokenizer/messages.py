"""The messages of a chat, as the protocol reads them and the chat template gets them. Plain records, no behaviour."""

import msgspec


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
