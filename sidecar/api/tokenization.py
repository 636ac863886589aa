"""POST /tokenize, /detokenize and /v1/messages/count_tokens: read → find the model → its tokenizer's answer.

The engine has no part in it.
"""

from aiohttp import web

from sidecar.api.boundary import read_body
from sidecar.api.front import Front
from sidecar.api.generation import ignored_headers
from sidecar.api.preparation import Preparation
from sidecar.protocol.fields import missing
from sidecar.protocol.plan import model_not_found


class Tokenization:
    """The handlers. Stateless. `fronts` are those of all models that are served."""

    def __init__(self, fronts: tuple[Front, ...], preparation: Preparation) -> None:
        self._fronts = fronts
        self._preparation = preparation

    async def tokenize(self, request: web.Request) -> web.Response:
        return await self._handle(request, back=False)

    async def detokenize(self, request: web.Request) -> web.Response:
        return await self._handle(request, back=True)

    async def count_tokens(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._fronts[0].settings.api.max_body_bytes)
        asked = await self._preparation.count_request(body)
        language, limits = self._front_of(asked.model).limits()
        return _answer(await self._preparation.message_count(asked, language, limits), asked.ignored)

    async def _handle(self, request: web.Request, *, back: bool) -> web.Response:
        body = await read_body(request, self._fronts[0].settings.api.max_body_bytes)
        asked = await self._preparation.tokenization_request(body, back=back)
        language, limits = self._front_of(asked.model).limits()
        return _answer(await self._preparation.tokenization(asked, language, limits), asked.ignored)

    def _front_of(self, model: str | None) -> Front:
        """Raises ApiError 404, or 400 where no model is named and several are served."""
        if model is None:
            if len(self._fronts) > 1:
                raise missing("model")
            return self._fronts[0]
        for front in self._fronts:
            if front.served == model:
                return front
        raise model_not_found(model)


def _answer(body: bytes, ignored: tuple[str, ...]) -> web.Response:
    return web.Response(body=body, headers={**ignored_headers(ignored), "content-type": "application/json"})
