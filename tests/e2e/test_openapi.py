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

from proxy.routes import METHODS
from proxy.routes import MODEL as MODEL_PATH
from sidecar.protocol.options import MOST_TOKENS as INT31
from sidecar.wire.internal import Endpoint
from tests.e2e.conftest import MODEL

# For a long run.
EXAMPLES = int(os.environ.get("TOLLHOUSE_OPENAPI_EXAMPLES", "15"))
MOST_TOKENS = 4
LIMITS = {"max_tokens", "max_completion_tokens", "max_output_tokens"}
# Where there is no body, nothing can be wrong with it.
CASES = [
    (path, mode)
    for path in METHODS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or "POST" in METHODS[path]
]
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
    house = build_house({"open": {"max_output_tokens": MOST_TOKENS, "default_output_tokens": MOST_TOKENS}})
    house.start_sidecar()
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
    return schema


def made_to_run(case: Any, path: str) -> None:
    """Let a case be for the model that is served, and no longer than the tier allows."""
    if path == MODEL_PATH:
        case.path_parameters["id"] = MODEL
    body = case.body
    if not isinstance(body, dict):
        return
    # What is wrong stays wrong.
    if body.get("model") and isinstance(body["model"], str):
        body["model"] = MODEL
    for name in LIMITS & body.keys():
        if isinstance(body[name], int | float) and MOST_TOKENS < body[name] <= INT31:
            body[name] = MOST_TOKENS
    if path == Endpoint.COMPLETIONS:
        body.setdefault("max_tokens", MOST_TOKENS)


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_it_is_answered_as_the_document_says(house: Any, key: str, schema: Any, path: str, mode: Any) -> None:
    base_url = f"http://127.0.0.1:{house.port}"
    statuses: Counter[int] = Counter()

    # Without shrinking: each example is a run of the model.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=HealthCheck,
        phases=[Phase.generate],
    )
    @given(case=schema[path][METHODS[path][0]].as_strategy(generation_mode=mode), stream=booleans())
    def ask(case: Any, stream: bool) -> None:
        made_to_run(case, path)
        if stream and path in set(Endpoint) - {Endpoint.EMBEDDINGS} and mode is GenerationMode.POSITIVE:
            case.body["stream"] = True
        answer = case.call(base_url=base_url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert statuses[200 if mode is GenerationMode.POSITIVE else 400]
