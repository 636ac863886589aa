"""The schemas of the bodies hold what the readers ask for, within their bounds, down to the parts of a message."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from typing_extensions import override

from sidecar.protocol.anthropic import read_message
from sidecar.protocol.chat import read_chat
from sidecar.protocol.completions import MAX_LOGPROBS
from sidecar.protocol.fields import Fields
from sidecar.protocol.openapi.bodies import TOKENIZE, bodies
from sidecar.protocol.options import MAX_STOPS
from sidecar.protocol.responses import read_response
from sidecar.settings import Api
from sidecar.wire.internal import Endpoint

PATHS = list(bodies(Api()))


class Watched(dict[str, Any]):
    """An object of a body. Mutable beside what it inherits: `asked`, the names that were read."""

    def __init__(self, values: dict[str, Any], asked: set[str]) -> None:
        super().__init__(values)
        self.asked = asked

    @override
    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


class Maker:
    """Makes values that schemas allow. Mutable: `asked`, what was read of the objects of each schema, by its names."""

    def __init__(self) -> None:
        self.asked: dict[frozenset[str], set[str]] = defaultdict(set)

    def values(self, schema: Any, *, full: bool) -> Iterator[Any]:
        """One of each kind; objects with all their fields if `full`, else with what is required."""
        if "anyOf" in schema:
            for one in schema["anyOf"]:
                yield from self.values(one, full=full)
        elif "enum" in schema:
            yield schema["enum"][0]
        elif "array" in schema["type"]:
            yield list(self.values(schema["items"], full=full))
        elif "object" in schema["type"]:
            names = schema["properties"] if full else schema["required"]
            made = {name: list(self.values(schema["properties"][name], full=full))[-1:] for name in names}
            for values in itertools.product(*made.values()):
                asked = self.asked[frozenset(schema["properties"])]
                yield Watched(dict(zip(made, values, strict=True)), asked)
        elif "string" in schema["type"]:
            yield "x"


@pytest.mark.parametrize(
    ("path", "field", "read"),
    [
        (Endpoint.CHAT, "messages", read_chat),
        (Endpoint.RESPONSES, "input", read_response),
        (Endpoint.MESSAGES, "messages", read_message),
        (Endpoint.MESSAGES, "system", read_message),
    ],
)
def test_the_parts_of_a_body_have_the_fields_that_are_read(path: Endpoint, field: str, read: Any) -> None:
    schema = bodies(Api())[path]["properties"][field]
    maker = Maker()
    body = {"model": "m", "max_tokens": 1} if path is Endpoint.MESSAGES else {"model": "m"}
    chat = {"messages": [{"role": "user", "content": "x"}]} if field == "system" else {}
    for full in (True, False):
        for value in maker.values(schema, full=full):
            read(Fields({**body, **chat, field: value}), Api())
    assert len(maker.asked) >= 1
    for described, asked in maker.asked.items():
        assert asked == described


def test_limits_are_the_readers_own_and_follow_the_settings() -> None:
    for most in (1, 8):
        found = bodies(Api(max_choices=most, max_messages=most, max_prompts=most))
        chat, completion = (found[path]["properties"] for path in (Endpoint.CHAT, Endpoint.COMPLETIONS))
        assert chat["n"]["maximum"] == completion["best_of"]["maximum"] == most
        assert chat["messages"]["maxItems"] == completion["prompt"]["anyOf"][-1]["maxItems"] == most
        assert completion["logprobs"]["maximum"] == MAX_LOGPROBS
        assert chat["stop"]["anyOf"][1]["maxItems"] == MAX_STOPS
    # With `echo` the prompt alone may be asked for.
    assert (chat["max_tokens"]["minimum"], completion["max_tokens"]["minimum"]) == (1, 0)


def test_allowed_variables_of_a_template_follow_the_settings() -> None:
    kwargs = bodies(Api(chat_template_kwargs=("tone",)))[TOKENIZE]["properties"]["chat_template_kwargs"]
    assert (list(kwargs["properties"]), kwargs["additionalProperties"]) == (["tone"], False)


@pytest.mark.parametrize("path", PATHS)
def test_no_body_takes_unknown_fields_unless_the_settings_let_them_pass(path: str) -> None:
    assert bodies(Api())[path]["additionalProperties"] is False
    assert bodies(Api(unknown_fields="ignore"))[path]["additionalProperties"] is True


def test_what_is_refused_may_say_what_asks_for_nothing() -> None:
    chat = bodies(Api())[Endpoint.CHAT]["properties"]
    assert chat["echo"]["enum"] == [False, None]
    assert chat["chat_template"]["enum"] == [None]
