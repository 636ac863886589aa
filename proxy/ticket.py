"""What a sidecar is told about a request in headers, beside the client's body; `sidecar.protocol.ticket` reads it."""

import msgspec

from proxy import tracing
from proxy.exchange import Trace
from sidecar.wire import internal


class Ticket(msgspec.Struct, frozen=True):
    """What the sidecar is told about a request beside its body."""

    request_id: str
    tenant: str
    weight: float
    priority: int
    cache_scope: str
    max_total_tokens: int
    max_output_tokens: int
    trace: Trace
    stored: bool = False
    previous_id: str | None = None

    def headers(self, deadline_s: float | None) -> dict[str, str]:
        """The whole head of the upstream request: nothing of the client's is copied.

        `deadline_s`: from now on, when nobody will wait for the end any more.
        """
        deadline = {} if deadline_s is None else {internal.DEADLINE_MS: str(max(1, round(deadline_s * 1000)))}
        output = {internal.MAX_OUTPUT_TOKENS: str(self.max_output_tokens)} if self.max_output_tokens else {}
        store = {internal.STORED: "1"} if self.stored else {}
        previous = {} if self.previous_id is None else {internal.PREVIOUS_RESPONSE: self.previous_id}
        return {
            "content-type": "application/json",
            internal.REQUEST_ID: self.request_id,
            internal.TENANT: self.tenant,
            internal.WEIGHT: f"{self.weight:g}",
            internal.PRIORITY: str(self.priority),
            internal.CACHE_SCOPE: self.cache_scope,
            internal.MAX_TOTAL_TOKENS: str(self.max_total_tokens),
            **output,
            **store,
            **previous,
            **deadline,
            **tracing.headers(self.trace),
        }
