"""Whatever is sent by the OpenAPI document, right or wrong, is answered as it says, and never with a 5xx."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from schemathesis import GenerationMode, checks

from proxy.exchange import TextEndpoint
from proxy.responses import INPUT_ITEMS, RESPONSE
from proxy.routes import METHODS
from proxy.routes import MODEL as MODEL_PATH
from sidecar.protocol.options import MOST_TOKENS as INT31
from sidecar.wire.internal import Endpoint
from tests.e2e.house import MODEL

# For a long run.
EXAMPLES = int(os.environ.get("TOLLHOUSE_OPENAPI_EXAMPLES", "15"))
MOST_TOKENS = 4
EMBEDDER = "all-minilm-l6-v2"
# As many tokens both models know.
VOCABULARY = 30_000
# What the tier and the encoder have at most.
MOST = dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), MOST_TOKENS) | {"dimensions": 384}
# HEAD is GET without a body. Where there is neither a body nor a query, nothing can be wrong with it.
CASES = [
    (path, method, mode)
    for path in METHODS
    for method in METHODS[path]
    for mode in GenerationMode
    if method != "HEAD"
    if mode is GenerationMode.POSITIVE or method == "POST" or (path in {RESPONSE, INPUT_ITEMS} and method == "GET")
]
STREAMED = set(Endpoint) - {Endpoint.EMBEDDINGS}
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any]) -> Iterator[Any]:
    rules = {
        "max_output_tokens": MOST_TOKENS,
        "default_output_tokens": MOST_TOKENS,
        "response_retention_days": 1,
    }
    house = build_house({"open": rules}, embedding={"id": EMBEDDER, "source": EMBEDDER})
    sidecar = house.start_sidecar()
    for model in (MODEL, EMBEDDER):
        sidecar.wait_for("ready", model=model)
    house.start_proxy()
    yield house
    house.stop()


@pytest.fixture(scope="module")
def key(house: Any) -> str:
    return str(house.key("open"))


@pytest.fixture(scope="module")
def schema(house: Any) -> Any:
    document = httpx2.get(f"http://127.0.0.1:{house.admin_port}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    # Keys have tests of their own, and wrong ones would soon be too many.
    schema.config.generation.update(with_security_parameters=False)
    # What is wrong may be too long before it is read.
    schema.config.checks.negative_data_rejection.expected_statuses = ["400", "413"]
    return schema


@pytest.fixture
def stored(house: Any, key: str) -> str:
    """The id of a stored response with two items."""
    asked: Any = [{"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}]
    return str(house.client(key).responses.create(model=MODEL, input=asked).id)


def made_to_run(case: Any, path: str, stored: str) -> None:
    """Let a case be for what is served and stored, and no longer than the tier allows."""
    if path in {RESPONSE, INPUT_ITEMS}:
        case.path_parameters["id"] = stored
    if path == MODEL_PATH:
        case.path_parameters["id"] = MODEL
    # What is wrong stays wrong.
    if isinstance(case.query, dict) and isinstance(case.query.get("after"), str):
        case.query["after"] = f"msg_{stored.removeprefix('resp_')}_0"
    if isinstance(case.body, dict):
        body_made_to_run(case.body, path, stored)


def body_made_to_run(body: dict[str, Any], path: str, stored: str) -> None:
    # Two models are served, so even these must name one.
    if path in {TextEndpoint.TOKENIZE, TextEndpoint.DETOKENIZE} and body.get("model") is None:
        body["model"] = MODEL
    if path == TextEndpoint.TOKENIZE and "messages" not in body:
        body.setdefault("prompt", "One?")
    if body.get("model") and isinstance(body["model"], str):
        body["model"] = EMBEDDER if path == Endpoint.EMBEDDINGS else MODEL
    if body.get("previous_response_id") and isinstance(body["previous_response_id"], str):
        body["previous_response_id"] = stored
    for name, most in MOST.items():
        if isinstance(body.get(name), int | float) and most < body[name] <= INT31:
            body[name] = most
    if path == Endpoint.COMPLETIONS:
        body.setdefault("max_tokens", MOST_TOKENS)


def as_written(value: Any) -> Any:
    """As clients write it: whole numbers, which have a point in some examples, have none; in a list they are tokens."""
    if isinstance(value, dict):
        return {name: as_written(one) for name, one in value.items()}
    if isinstance(value, list):
        items = [as_written(one) for one in value]
        return [one % VOCABULARY if type(one) is int else one for one in items]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_it_is_answered_as_the_document_says(
    house: Any, key: str, schema: Any, stored: str, *, path: str, method: str, mode: Any
) -> None:
    base_url = f"http://127.0.0.1:{house.port}"
    statuses: Counter[int] = Counter()

    # Without shrinking: each example is a run of the model.
    @settings(
        # Where no model runs there is time for more: few of those that are meant to be wrong are.
        max_examples=EXAMPLES if method == "POST" else 4 * EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=HealthCheck,
        phases=[Phase.generate],
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode), stream=booleans())
    def ask(case: Any, stream: bool) -> None:
        made_to_run(case, path, stored)
        if mode is GenerationMode.POSITIVE:
            case.body = as_written(case.body)
        if stream and path in STREAMED and mode is GenerationMode.POSITIVE:
            case.body["stream"] = True
        answer = case.call(base_url=base_url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        statuses[answer.status_code] += 1
        # Nothing is said of other names in a query: they pass.
        case.validate_response(answer, checks=CHECKS if method == "POST" else CHECKS[:-1])

    ask()
    assert statuses[200 if mode is GenerationMode.POSITIVE else 400], statuses
