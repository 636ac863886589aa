"""The fields of a chat that reach the model's chat template beside the messages, read into a `Rendering`.

A client names variables, and only those that the settings allow; the template itself is always the model's.
"""

from collections.abc import Sequence
from typing import Final

from sidecar.protocol.fields import Fields, as_object, as_text, check_length, invalid_value, wrong_type
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, Rendering, Scalar, Tool
from sidecar.wire.errors import bad_request

MAX_DOCUMENTS: Final = 128
MAX_DOCUMENT_FIELDS: Final = 16
MAX_NAME_CHARS: Final = 64
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def read_rendering(
    fields: Fields,
    api: Api,
    messages: Sequence[Message],
    reasoning: Fields | None = None,
    tools: tuple[Tool, ...] = (),
) -> Rendering:
    """Raises ApiError 400. `reasoning` is the object that holds the effort in Responses."""
    begins = fields.flag("add_generation_prompt")
    continues = fields.flag("continue_final_message") or False
    if continues:
        _check_continued(messages, begins=begins or False)
    variables = _variables(fields, api.chat_template_kwargs)
    holder, name = (fields, "reasoning_effort") if reasoning is None else (reasoning, "effort")
    effort = holder.choice(name, _EFFORTS)
    if effort is not None and variables.get("reasoning_effort", effort) != effort:
        raise invalid_value(holder.path(name), "'chat_template_kwargs' says another one; give one.")
    return Rendering(
        add_generation_prompt=not continues if begins is None else begins,
        continue_final_message=continues,
        variables=variables,
        reasoning_effort=effort,
        documents=_documents(fields),
        tools=tools,
    )


def _check_continued(messages: Sequence[Message], *, begins: bool) -> None:
    if begins:
        raise invalid_value(
            "continue_final_message", "an answer cannot go on and begin; 'add_generation_prompt' is true as well."
        )
    if messages[-1].role != "assistant":
        raise invalid_value("continue_final_message", "the last message is not the assistant's.")
    if messages[-1].tool_calls:
        raise invalid_value("continue_final_message", "the last message has tool calls, which cannot be gone on with.")


def _variables(fields: Fields, allowed: Sequence[str]) -> dict[str, Scalar]:
    given = fields.object("chat_template_kwargs")
    if given is None:
        return {}
    found: dict[str, Scalar] = {}
    for name in given.names():
        path = given.path(name[:MAX_NAME_CHARS])
        if name not in allowed:
            raise bad_request(
                f"Unsupported parameter: '{path}' is not among the names that this server allows "
                "(setting api.chat_template_kwargs).",
                param=path,
                code="unsupported_parameter",
            )
        value = given.value(name)
        if isinstance(value, Scalar):
            found[name] = value
        elif value is not None:
            raise wrong_type(path, "a string, a number or a boolean", value)
    return found


def _documents(fields: Fields) -> tuple[dict[str, str], ...]:
    documents = fields.array("documents")
    if not documents:
        return ()
    check_length(documents, "documents", MAX_DOCUMENTS)
    return tuple(_document(as_object(document, f"documents[{at}]")) for at, document in enumerate(documents))


def _document(fields: Fields) -> dict[str, str]:
    names = fields.names()
    if len(names) > MAX_DOCUMENT_FIELDS:
        raise invalid_value("documents", f"a document may have {MAX_DOCUMENT_FIELDS} fields at most.")
    if any(len(name) > MAX_NAME_CHARS for name in names):
        raise invalid_value("documents", f"a field's name may have {MAX_NAME_CHARS} characters at most.")
    return {name: as_text(fields.value(name), fields.path(name)) for name in names}
