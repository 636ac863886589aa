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
        told = {
            "content-type": "application/json",
            internal.REQUEST_ID: self.request_id,
            internal.TENANT: self.tenant,
            internal.WEIGHT: f"{self.weight:g}",
            internal.PRIORITY: str(self.priority),
            internal.CACHE_SCOPE: self.cache_scope,
            internal.MAX_TOTAL_TOKENS: str(self.max_total_tokens),
        }
        if self.max_output_tokens:
            told[internal.MAX_OUTPUT_TOKENS] = str(self.max_output_tokens)
        if self.stored:
            told[internal.STORED] = "1"
        if self.previous_id is not None:
            told[internal.PREVIOUS_RESPONSE] = self.previous_id
        if deadline_s is not None:
            told[internal.DEADLINE_MS] = str(max(1, round(deadline_s * 1000)))
        told.update(tracing.headers(self.trace))
        return told
