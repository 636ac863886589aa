"""From a body of /v1/embeddings to texts or token ids, and from vectors to the answer. No HTTP, no model."""

import base64
from typing import Final, Literal

import msgspec
import numpy as np

from sidecar.protocol.completions import read_prompt, token_ids
from sidecar.protocol.fields import Fields, check_length, invalid_value, missing, wrong_type
from sidecar.protocol.options import MOST_TOKENS, read_model, unknown_fields
from sidecar.protocol.plan import Encoder, Limits, check_bytes, check_tokens
from sidecar.protocol.ticket import Ticket
from sidecar.settings import Api
from sidecar.wire.errors import bad_request
from sidecar.wire.frames import Sampling, Submit

# OpenAI's reference: an array may have so many inputs, and they so many tokens together.
MAX_INPUTS: Final = 2048
MAX_TOKENS: Final = 300_000

Input = str | tuple[int, ...]


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """A body of /v1/embeddings. `dimensions` of None: the whole vector."""

    model: str
    inputs: tuple[Input, ...]
    base64: bool
    dimensions: int | None
    ignored: tuple[str, ...]


class EmbeddingPlan(msgspec.Struct, frozen=True):
    """A request ready to run: a sequence for each input, in order. `max_context` is the model's, in tokens."""

    ticket: Ticket
    request: EmbeddingRequest
    prompt_tokens: int
    max_context: int
    submits: tuple[Submit, ...]


class EmbeddingData(msgspec.Struct, frozen=True):
    """One vector, as numbers or as base64 of little-endian fp32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """What a request used, in tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """OpenAI's answer."""

    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


def read_embedding(fields: Fields, api: Api) -> EmbeddingRequest:
    """Raises ApiError 400."""
    model = read_model(fields)
    inputs = _inputs(fields)
    encoding = fields.choice("encoding_format", ("float", "base64"))
    dimensions = fields.integer("dimensions", 1, MOST_TOKENS)
    fields.text("user")
    return EmbeddingRequest(model, inputs, encoding == "base64", dimensions, tuple(unknown_fields(fields, api)))


def make_embedding_plan(
    request: EmbeddingRequest, ticket: Ticket, limits: Limits, encoder: Encoder, size: int
) -> EmbeddingPlan:
    """`size` is the length of the model's vectors.

    Raises ApiError 400 for what does not fit into the model, or into the reservation.
    """
    if request.dimensions is not None and request.dimensions > size:
        raise invalid_value("dimensions", f"this model's vectors have {size} dimensions.")
    prompts = [_encoded(one, at, encoder, limits, len(request.inputs) > 1) for at, one in enumerate(request.inputs)]
    total = sum(map(len, prompts))
    if total > MAX_TOKENS:
        raise bad_request(
            f"Invalid 'input': {total} tokens in all, and {MAX_TOKENS} are allowed in a request.",
            param="input",
            code="max_tokens_per_request",
        )
    if ticket.max_total_tokens is not None and total > ticket.max_total_tokens:
        raise bad_request(
            f"The input has {total} tokens; {ticket.max_total_tokens} are reserved for it.",
            param="input",
            code="reservation_exceeded",
        )
    submits = tuple(
        Submit(
            request_id=ticket.request_id,
            index=index,
            prompt_ids=ids,
            max_new_tokens=0,
            sampling=Sampling(temperature=0),
            stop_token_ids=[],
            tenant=ticket.tenant,
            weight=ticket.weight,
            priority=ticket.priority,
            deadline_ms=ticket.deadline_ms,
        )
        for index, ids in enumerate(prompts)
    )
    return EmbeddingPlan(ticket, request, total, limits.max_context, submits)


def embedding_answer(plan: EmbeddingPlan, vectors: list[bytes]) -> bytes:
    """The JSON answer; `vectors` are fp32, little-endian, in the order of the inputs."""
    request = plan.request
    data = [EmbeddingData(at, _shown(vector, request)) for at, vector in enumerate(vectors)]
    usage = EmbeddingUsage(plan.prompt_tokens, plan.prompt_tokens)
    return msgspec.json.encode(EmbeddingList(data, request.model, usage))


def _shown(vector: bytes, request: EmbeddingRequest) -> list[float] | str:
    if request.dimensions is not None:
        # A shortened vector is brought back to length 1 (OpenAI's reference, `dimensions`).
        cut = np.frombuffer(vector, dtype="<f4")[: request.dimensions]
        vector = (cut / max(float(np.linalg.norm(cut)), 1e-12)).astype("<f4").tobytes()
    if request.base64:
        return base64.b64encode(vector).decode("ascii")
    numbers: list[float] = np.frombuffer(vector, dtype="<f4").tolist()
    return numbers


def _inputs(fields: Fields) -> tuple[Input, ...]:
    value = fields.value("input")
    if value is None:
        raise missing("input")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise wrong_type("input", "a string or an array", value)
    # Numbers are the tokens of one input.
    if value and isinstance(value[0], int | float):
        return (token_ids(value, "input"),)
    check_length(value, "input", MAX_INPUTS)
    return tuple(read_prompt(one, f"input[{at}]") for at, one in enumerate(value))


def _encoded(one: Input, at: int, encoder: Encoder, limits: Limits, several: bool) -> list[int]:
    path = f"input[{at}]" if several else "input"
    if isinstance(one, str):
        if not one:
            raise invalid_value(path, "an empty text has no meaning to embed.")
        check_bytes(len(one.encode()), path, limits)
        ids = encoder.encode_text(one)
        if not ids:
            raise invalid_value(path, "the text has no tokens.")
    else:
        ids = list(one)
        check_tokens(ids, path, limits)
    if len(ids) > limits.max_context:
        raise bad_request(
            f"This model's maximum context length is {limits.max_context} tokens, however you requested {len(ids)} "
            f"tokens in '{path}'. Please reduce your input.",
            param=path,
            code="context_length_exceeded",
        )
    return ids
