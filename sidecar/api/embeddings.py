"""POST /v1/embeddings: read → plan → queue → vectors. Where no embedding model is served it says so.

Everything that can be refused is refused before the engine has it. After that a request ends once, as a whole answer of
generation does: see `sidecar.api.generation`.
"""

import asyncio
import time
from typing import Final

from aiohttp import web

from sidecar.api.boundary import REQUEST_ID, read_body
from sidecar.api.engine import Sequences
from sidecar.api.events import break_off
from sidecar.api.front import Front
from sidecar.api.generation import head
from sidecar.api.preparation import Preparation
from sidecar.protocol.choices import finish_reason
from sidecar.protocol.embeddings import EmbeddingPlan, embedding_answer
from sidecar.protocol.fields import Fields
from sidecar.protocol.plan import model_not_found
from sidecar.protocol.ticket import Ticket, read_ticket
from sidecar.wire.errors import bad_request, internal_error

ENDPOINT: Final = "/v1/embeddings"


class Embeddings:
    """The handler. Stateless. `front` is the embedding model's; None where none is served."""

    def __init__(self, front: Front | None, preparation: Preparation, generator: Front) -> None:
        """`generator` is the front of the model that is served beside it."""
        self.front = front
        self._generator = generator
        self._preparation = preparation

    async def create(self, request: web.Request) -> web.StreamResponse:
        ticket = read_ticket(request.headers, request[REQUEST_ID])
        body = await read_body(request, self._generator.settings.api.max_body_bytes)
        front, plan = await self.plan(await self._preparation.fields(body), ticket)
        with front.flight():
            sequences = front.engine.open(ticket.request_id, list(plan.submits))
            started_s = time.monotonic()
            try:
                vectors = await self._vectors(front, plan, sequences)
                answer = await asyncio.to_thread(embedding_answer, plan, vectors)
            except asyncio.CancelledError:
                _end(front, plan, "client_gone", started_s)
                raise
            except Exception as exc:
                error = front.failed(exc, ticket)
                _end(front, plan, "failed", started_s, error.code)
                if not ticket.proxied:
                    raise error from exc
                # An error status would tell a proxy that nothing ran, and it would not ask what is owed.
                break_off(request)
                return web.Response(status=error.status)
            _end(front, plan, "complete", started_s)
            return web.Response(
                body=answer,
                headers={**head(plan.prompt_tokens, plan.request.ignored), "content-type": "application/json"},
            )

    async def plan(self, fields: Fields, ticket: Ticket) -> tuple[Front, EmbeddingPlan]:
        """The front that is to run a body, and its plan.

        Raises ApiError: 400, 404 for a model that is not served here, 503 if it cannot run now or too many bodies wait.
        """
        request = await self._preparation.embedding_request(fields)
        front = self._front_of(request.model)
        language, limits = front.limits()
        info = front.engine.info
        size = 0 if info is None else info.embedding_size
        return front, await self._preparation.embedding_plan(request, ticket, language, limits, size)

    def _front_of(self, model: str) -> Front:
        if self.front is not None and self.front.served == model:
            return self.front
        if model != self._generator.served:
            raise model_not_found(model)
        raise bad_request(
            f"The model '{model}' generates text and gives no embeddings.", param="model", code="unsupported_endpoint"
        )

    async def _vectors(self, front: Front, plan: EmbeddingPlan, sequences: Sequences) -> list[bytes]:
        """The vectors in the order of the inputs. Raises what the engine raises, and ApiError for one that failed."""
        found: dict[int, bytes] = {}
        async with sequences:
            async for delta in sequences:
                if delta.error is not None:
                    front.log.error("sequence_failed", **plan.ticket.named(), message=delta.error)
                finish_reason(delta)
                found[delta.index] = delta.embedding
                if len(found) == len(plan.submits):
                    return [found[submit.index] for submit in plan.submits]
        raise internal_error()


def _end(front: Front, plan: EmbeddingPlan, ending: str, started_s: float, error_code: str | None = None) -> None:
    """Count and log a request that is over. `ending` is one of `metrics.EMBEDDING_OUTCOMES`."""
    front.metrics.embedded(ending, plan.prompt_tokens)
    front.log.info(
        "request",
        **plan.ticket.named(),
        endpoint=ENDPOINT,
        stream=False,
        count=len(plan.submits),
        prompt_tokens=plan.prompt_tokens,
        ending=ending,
        error_code=error_code,
        duration_ms=round((time.monotonic() - started_s) * 1000),
    )
