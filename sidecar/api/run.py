"""One accepted request, from acceptance to its one end: what is timed, counted and logged of it."""

import time
from collections.abc import Callable

from sidecar.api.tracing import Ran, Traced
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Metrics
from sidecar.protocol.choices import Choices, Progress
from sidecar.protocol.plan import Plan
from sidecar.wire.frames import Delta
from sidecar.wire.internal import Usage

ABORTED = "aborted"


class Run:
    """Mutable: `_begun_s` (the first sequence is worked on), `_first_s` (the first token), `_last_s` (each sequence's
    last token), `_over` (it has ended).
    """

    def __init__(
        self,
        plan: Plan,
        choices: Choices,
        metrics: Metrics,
        log: JsonLog,
        clock: Callable[[], float] = time.monotonic,
        *,
        traced: Traced | None = None,
    ) -> None:
        """`traced`, of a request whose spans are sent, is told how it ran."""
        self._traced = traced
        self._begun_s: float | None = None
        self.plan = plan
        self.choices = choices
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._accepted_s = clock()
        self._first_s: float | None = None
        self._last_s: dict[int, float] = {}
        self._over = False
        metrics.accepted(plan.prompt_tokens)

    def note(self, delta: Delta) -> None:
        """Time the tokens of a delta: when the engine gives it, not when its reader is ready for it."""
        if self._over or not delta.token_ids:
            return
        now_s = self._clock()
        if self._first_s is None:
            self._first_s = now_s
            self._metrics.first_token(now_s - self._accepted_s)
            self._begun_s = min(now_s, self._accepted_s + delta.waited_us / 1e6)
        last_s = self._last_s.get(delta.index)
        if last_s is not None:
            self._metrics.next_tokens(len(delta.token_ids), now_s - last_s)
        self._last_s[delta.index] = now_s

    def take(self, delta: Delta) -> Progress:
        """Give a choice its delta, and count its tokens at once. Raises ApiError if the engine gave it up."""
        choice = self.choices.all[delta.index]
        before = choice.generated
        try:
            return self.choices.take(delta)
        finally:
            # What the engine ran past a stop string is not among them.
            self._metrics.generated(choice.generated - before)

    def complete(self) -> None:
        """The whole answer was given."""
        self._end(self.choices.finish_reason, "complete", None)

    def abort(self, reason: str, error_code: str | None = None) -> None:
        """The answer is not whole. `reason` is one of `metrics.ABORT_REASONS`. An end that came before stands."""
        if not self._over:
            self._metrics.aborted(reason)
        self._end(ABORTED, reason, error_code)

    def _end(self, finish_reason: str, ending: str, error_code: str | None) -> None:
        if self._over:
            return
        self._over = True
        now_s = self._clock()
        first_s = self._first_s
        decode_s = None if first_s is None else max(self._last_s.values()) - first_s
        tokens = self.choices.completion_tokens
        self._metrics.ended(finish_reason, tokens, now_s - self._accepted_s, decode_s)
        if self._traced is not None:
            self._traced.ran = self._ran(finish_reason, ending, error_code)
        self._log.info(
            "request",
            **self.plan.ticket.named(),
            endpoint=self.plan.endpoint.value,
            stream=self.plan.options.stream,
            choices=len(self.choices.all),
            prompt_tokens=self.plan.prompt_tokens,
            completion_tokens=tokens,
            finish_reason=finish_reason,
            ending=ending,
            error_code=error_code,
            duration_ms=round((now_s - self._accepted_s) * 1000),
            ttft_ms=None if first_s is None else round((first_s - self._accepted_s) * 1000),
        )

    def _ran(self, finish_reason: str, ending: str, error_code: str | None) -> Ran:
        plan, choices = self.plan, self.choices
        cached_tokens = choices.cached_tokens(plan.best_of)
        return Ran(
            model=plan.options.model,
            usage=Usage(plan.prompt_tokens, choices.completion_tokens, cached_tokens, finish_reason),
            ending=ending,
            error_code=error_code,
            accepted_s=self._accepted_s,
            begun_s=self._begun_s,
            first_s=self._first_s,
            last_s=max(self._last_s.values(), default=None),
        )
