"""What every handler stands on: the engine, the loaded tokenizer, and what is known of the one served model."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.api.engine import Engine
from sidecar.grammars.compiler import (
    CompiledGrammar,
    Compiler,
    CompilerBusyError,
    CompilerLostError,
    GrammarRefusedError,
)
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Gauges, Metrics
from sidecar.protocol.plan import Encoder, Limits
from sidecar.protocol.speech.dialect import WORDS_ONLY, Dialect
from sidecar.protocol.speech.syntax import written
from sidecar.protocol.ticket import Ticket
from sidecar.settings import Sidecar
from sidecar.supervisor import EngineLostError
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import ApiError, bad_request, internal_error, unavailable
from sidecar.wire.grammars import Grammar, GrammarKind, Vocabulary
from sidecar.wire.internal import ModelState, State, TokenBound

# How many requests may wait for each that may run, unless the settings say (GUARDS, F15).
QUEUE_FACTOR: Final = 4
LOADING: Final = "loading"
DRAINING: Final = "draining"


class TextDecoder(Encoder, Protocol):
    """A tokenizer both ways."""

    def detokenizer(
        self, before: Sequence[int] = (), *, specials: bool = False, markers: Sequence[str] = ()
    ) -> Detokenizer: ...
    def spell(self, token: int, *, begins: bool = False) -> bytes: ...
    def vocabulary(self, size: int, markers: Sequence[str] = ()) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class Language:
    """The served model's side of text, as loaded. `created` is when the model's files were made, in UTC seconds."""

    tokenizer: TextDecoder
    stop_token_ids: tuple[int, ...]
    bound: TokenBound | None
    chats: bool
    created: int
    dialect: Dialect = WORDS_ONLY


class Front:
    """The handlers' common ground.

    Mutable: `language` (None until the tokenizer is loaded), the compiler, `_flights` (accepted requests that are not
    over), `_landed` (set while there are none).
    """

    def __init__(
        self, settings: Sidecar, engine: Engine, metrics: Metrics, log: JsonLog, *, embeds: bool = False
    ) -> None:
        """`embeds`: the engine is that of `settings.embedding`."""
        self.settings = settings
        self.embeds = embeds
        self.served = settings.embedding.id if embeds and settings.embedding else settings.model.id
        self.engine = engine
        self.metrics = metrics
        self.log = log
        self.language: Language | None = None
        self.compiler = Compiler(self._vocabulary, settings.timeouts.compile_s, metrics.grammar_compiled)
        self._flights = 0
        self._landed = asyncio.Event()
        self._landed.set()

    @property
    def ready(self) -> bool:
        return self.engine.ready and self.language is not None

    def limits(self) -> tuple[Language, Limits]:
        """What a request is read and planned with. Raises ApiError 503 while the model cannot run one."""
        language, info = self.language, self.engine.info
        if not self.engine.ready or language is None or info is None:
            raise not_ready(self._reason)
        ends = language.stop_token_ids
        return language, Limits(self.served, info.max_context, info.vocab_size, ends, language.dialect)

    async def compiled(self, grammar: Grammar) -> CompiledGrammar:
        """Raises ApiError: 400 for a grammar that cannot be compiled, 503 if it cannot be now."""
        try:
            return await self.compiler.compile(grammar)
        except GrammarRefusedError as exc:
            schema = grammar.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.STRUCTURAL_TAG)
            raise bad_request(
                f"Invalid '{grammar.param}': {exc}.",
                param=grammar.param,
                code="invalid_json_schema" if schema else "invalid_value",
            ) from exc
        except CompilerBusyError as exc:
            raise unavailable("The server is overloaded.", code="server_is_overloaded", retry_after_s=1) from exc
        except CompilerLostError as exc:
            self.log.exception("compiler_lost", exc)
            raise unavailable(
                "The format cannot be prepared now.", code="upstream_unavailable", retry_after_s=1
            ) from exc

    def _vocabulary(self) -> Vocabulary:
        language, info = self.language, self.engine.info
        if language is None or info is None:
            raise not_ready(self._reason)
        tokens = language.tokenizer.vocabulary(info.vocab_size, written(language.dialect))
        return Vocabulary(tokens, list(language.stop_token_ids))

    def model(self) -> ModelState | None:
        """The served model, once all of it is known; it stays known while the engine restarts."""
        language, info = self.language, self.engine.info
        if language is None or info is None:
            return None
        return ModelState(
            id=self.served,
            max_context=info.max_context,
            tier=info.tier,
            steps_down=info.steps_down,
            precision=info.precision,
            device=info.device,
            fingerprint=info.fingerprint,
            created=language.created,
            capabilities=self._capabilities(language),
            bound=language.bound,
        )

    def _capabilities(self, language: Language) -> list[str]:
        if self.embeds:
            return ["embeddings"]
        return ["chat", "completions"] if language.chats else ["completions"]

    def state(self, others: Sequence["Front"] = ()) -> State:
        """How this front's engine stands. `others`: fronts whose models are served beside it."""
        engine, step = self.engine, self.engine.last_step
        fronts = (self, *others)
        models = [model for front in fronts if (model := front.model()) is not None]
        if len(models) < len(fronts):
            # None is named before all are: one that still loads would be taken for one that nobody serves.
            models = []
        return State(
            ready=self.ready,
            reason="" if self.ready else self._reason,
            models=models,
            running=engine.running,
            waiting=engine.waiting,
            max_sequences=self.settings.engine.max_sequences,
            max_queue=max_queue(self.settings),
            kv_used_tokens=0 if step is None else step.kv_used_tokens,
            kv_capacity_tokens=0 if step is None else step.kv_capacity_tokens,
            steps=0 if step is None else step.number,
            engine_pid=engine.engine_pid,
            restarts=_restarts(fronts),
            heartbeat_age_s=engine.heartbeat_age_s,
            slots_path=str(engine.slots_path.absolute()),
        )

    def gauges(self, others: Sequence["Front"] = ()) -> Gauges:
        """As `state`, for the metrics."""
        engine, step = self.engine, self.engine.last_step
        used = 0.0 if step is None or not step.kv_capacity_tokens else step.kv_used_tokens / step.kv_capacity_tokens
        fronts = (self, *others)
        loaded = {front.served: info for front in fronts if (info := front.engine.info) is not None}
        return Gauges(engine.running, engine.waiting, used, _restarts(fronts), loaded)

    def failed(self, exc: Exception, ticket: Ticket) -> ApiError:
        """What a client is told of what went wrong after its request was accepted. What nobody expected is logged."""
        if isinstance(exc, ApiError):
            return exc
        if isinstance(exc, EngineLostError):
            if self.engine.reason == DRAINING:
                return not_ready(DRAINING)
            return unavailable("The model server was lost.", code="upstream_unavailable", retry_after_s=1)
        self.log.exception("request_failed", exc, **ticket.named())
        return internal_error()

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        """The time from acceptance to the last byte: a drain waits for it."""
        self._flights += 1
        self._landed.clear()
        try:
            yield
        finally:
            self._flights -= 1
            if not self._flights:
                self._landed.set()

    async def landed(self) -> None:
        """Return when no accepted request is left."""
        await self._landed.wait()

    @property
    def _reason(self) -> str:
        return self.engine.reason or LOADING


def _restarts(fronts: Sequence[Front]) -> int:
    return sum(front.engine.restarts for front in fronts)


def max_queue(settings: Sidecar) -> int:
    """How many requests may wait."""
    return settings.max_queue or QUEUE_FACTOR * settings.engine.max_sequences


def not_ready(reason: str) -> ApiError:
    """The refusal of a request that no engine can run now."""
    if reason == LOADING:
        return unavailable("The model is being loaded. Please try again.", code="model_loading", retry_after_s=5)
    if reason == DRAINING:
        return unavailable("The model server is shutting down.", code="shutting_down", retry_after_s=5)
    return unavailable("The model is not available now.", code="upstream_unavailable", retry_after_s=1)
