"""Tools in a chat: as a chat template is given them, or described in words where it knows none.

A template that does not know them gets a system message that describes them and Hermes's way to call them
(`<tool_call>`), earlier calls written in that way, and results as words of the user's between `<tool_response>`.
"""

import enum
import json
from typing import Final

from sidecar.tokenizer.messages import Tool

Shown = dict[str, object]

# What a tool without parameters takes: nothing.
NO_PARAMETERS: Final[dict[str, object]] = {"type": "object", "properties": {}}
_DESCRIPTION: Final = """# Tools

You may call functions to help with the request. These are at your disposal, one JSON object a line:
<tools>
{tools}
</tools>

To call one, write its name and its arguments as a JSON object between these tags:
<tool_call>
{{"name": <name>, "arguments": <arguments as a JSON object>}}
</tool_call>"""
_RESULTS: Final = ("tool", "function")


class Place(enum.Enum):
    """Where a template looks for tools: in a variable, in the system message (Phi-4-mini), or nowhere."""

    VARIABLE = "variable"
    SYSTEM = "system"
    NOWHERE = "nowhere"


def shown_tool(tool: Tool) -> Shown:
    """A tool as templates know it, before anything is done to its texts."""
    function: Shown = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = NO_PARAMETERS if tool.parameters is None else tool.parameters
    return {"type": "function", "function": function}


def in_system_message(messages: list[Shown], tools: list[Shown]) -> list[Shown]:
    """The messages with the tools as JSON in the first one, which is the system's."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    written = _json([tool["function"] for tool in tools])
    return [{**messages[0], "tools": written}, *messages[1:]]


def described(messages: list[Shown], tools: list[Shown], *, to_user: bool) -> list[Shown]:
    """The messages with a description of the tools before them; `to_user`: in the first words of the user's."""
    text = _DESCRIPTION.format(tools="\n".join(map(_json, tools)))
    role = "user" if to_user else "system"
    if messages[0]["role"] == role:
        first = messages[0]["content"]
        content = f"{text}\n\n{first}" if to_user else f"{first}\n\n{text}"
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": role, "content": text}, *messages]


def written_out(messages: list[Shown]) -> list[Shown]:
    """The messages with calls and results as words, for a template that knows neither."""
    made: list[Shown] = []
    answering = False
    for message in messages:
        result = message["role"] in _RESULTS
        if result:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if answering:
                # Several results are one turn, or the roles would not alternate.
                made[-1] = {"role": "user", "content": f"{made[-1]['content']}\n{text}"}
            else:
                made.append({"role": "user", "content": text})
        else:
            made.append(_call_as_words(message))
        answering = result
    return made


def _call_as_words(message: Shown) -> Shown:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    written = [_json({"name": call["function"]["name"], "arguments": call["function"]["arguments"]}) for call in calls]
    texts = [str(message["content"]), *(f"<tool_call>\n{call}\n</tool_call>" for call in written)]
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join(text for text in texts if text)}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
