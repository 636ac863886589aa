"""The table of URLs, by raw path."""

import pytest

from proxy.exchange import TextEndpoint
from proxy.responses import INPUT_ITEMS, RESPONSE
from proxy.routes import (
    METHODS,
    MODEL,
    MODELS,
    _allowed,
    _authorization,
    _client_request_id,
    _template,
)
from sidecar.wire.internal import Endpoint


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/chat/completions", Endpoint.CHAT.value),
        ("/v1/completions", Endpoint.COMPLETIONS.value),
        ("/v1/messages", Endpoint.MESSAGES.value),
        ("/v1/messages/count_tokens", TextEndpoint.COUNT_TOKENS.value),
        ("/v1/messages/batches", None),
        ("/tokenize", TextEndpoint.TOKENIZE.value),
        ("/detokenize", TextEndpoint.DETOKENIZE.value),
        ("/v1/tokenize", None),
        ("/v1/detokenize", None),
        ("/tokenize/", None),
        ("/v1/responses", Endpoint.RESPONSES.value),
        ("/v1/responses/resp_1", RESPONSE),
        ("/v1/responses/resp_%2F", RESPONSE),
        ("/v1/responses/resp_1/", None),
        ("/v1/responses/resp_1/cancel", None),
        ("/v1/responses/resp_1/input_items", INPUT_ITEMS),
        ("/v1/responses/resp_1/input_items/", None),
        ("/v1/responses/resp_1//input_items", None),
        ("/v1/responses/input_tokens", None),
        ("/v1/responses/", None),
        ("/v1/embeddings", Endpoint.EMBEDDINGS.value),
        ("/v1/models", MODELS),
        ("/v1/models/m", MODEL),
        ("/v1/models/org/m", MODEL),
        ("/v1/models/org%2Fm", MODEL),
        ("/v1/models/", None),
        ("/v1/models%2Fm", None),
        ("/v1/modelsx", None),
        ("/v1/chat/completions/", None),
        ("/v1/Chat/completions", None),
        ("//v1/models", None),
        ("", None),
        ("*", None),
    ],
)
def test_a_path_is_matched_as_it_was_sent(path: str, template: str | None) -> None:
    assert _template(path) == template


def test_every_endpoint_has_its_methods() -> None:
    assert {endpoint.value for endpoint in (*Endpoint, *TextEndpoint)} <= set(METHODS)
    assert _allowed(MODEL) == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1", "abc-1"), ("a" * 512, "a" * 512), ("a" * 513, None), ("é", None), ("a\tb", None), (None, None)],
)
def test_a_client_s_request_id_is_short_ascii_or_nothing(given: str | None, kept: str | None) -> None:
    assert _client_request_id(given) == kept


@pytest.mark.parametrize(
    ("headers", "authorization", "differs"),
    [
        ({}, None, False),
        ({"authorization": "Bearer a"}, "Bearer a", False),
        ({"x-api-key": "a"}, "Bearer a", False),
        ({"x-api-key": "a", "authorization": "bearer  a"}, "Bearer a", False),
        ({"x-api-key": " ", "authorization": "Bearer a"}, "Bearer a", False),
        ({"x-api-key": "a", "authorization": "Bearer b"}, "Bearer a", True),
        ({"x-api-key": "a", "authorization": "Basic a"}, "Bearer a", True),
    ],
)
def test_anthropic_s_header_holds_a_key_as_the_other_does(
    headers: dict[str, str], authorization: str | None, differs: bool
) -> None:
    assert _authorization(headers, api_key=True) == (authorization, differs)
    assert _authorization(headers, api_key=False) == (headers.get("authorization"), False)
