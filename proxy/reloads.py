"""What is told of the policy when it is read: its metrics and its log lines. See `proxy.policy.watch.Observer`."""

from collections.abc import Callable, Sequence

from proxy.clock import Clock
from proxy.metrics import Metrics
from proxy.policy.schema import Policy
from sidecar.jsonlog import JsonLog
from sidecar.yamlfile import ConfigInvalidError, Problem


class Reloads:
    """Stateless. `told` is called after each reading but the first."""

    def __init__(self, metrics: Metrics, clock: Clock, log: JsonLog, told: Callable[[], None]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._told = told

    def loaded(self, policy: Policy, before: Policy | None) -> None:
        """`before` is None at the start, which is no reload."""
        if before is None or before.revision != policy.revision:
            self._metrics.policy.clear()
            self._metrics.policy.labels(policy.revision).set(1)
        self._metrics.reload_worked.set(1)
        self._metrics.reload_success.set(self._clock.now().timestamp())
        if before is not None:
            self._metrics.reloads.labels("ok").inc()
            self._log.info("policy_reloaded", revision=policy.revision, tiers=len(policy.tiers))
            self._told()

    def refused(self, problems: Sequence[Problem], exc: Exception, current: Policy) -> None:
        """The policy stays as it is; what is wrong with the files is one line."""
        self._metrics.reloads.labels("error").inc()
        self._metrics.reload_worked.set(0)
        self._log.refused(
            "policy_refused",
            [str(problem) for problem in problems],
            revision=current.revision,
            hint="The revision named here stays in force. `tollhouse policy check` says what is wrong.",
        )
        if not isinstance(exc, ConfigInvalidError):
            self._log.exception("policy_unreadable", exc)
        self._told()
