"""What the hallway learns of one request on its way, and what is told of it at its end. No decision is made here."""

from dataclasses import dataclass

from proxy.exchange import Arrival, Call, Outcome, Principal
from proxy.forward import Timings
from proxy.metrics import OTHER
from proxy.once import Guard
from proxy.record import Ended, Rooms
from proxy.upstream import Sidecar
from proxy.verdict import Remark
from sidecar.wire.errors import ApiError


@dataclass(slots=True)
class Notes:
    """What is known of one request so far. Mutable: each field is set once, by the room that finds it out.

    `served` is the model that is asked for, if there is one of that name; `model` the same, once the key has a right
    to it. What a client is told goes by the second.
    """

    principal: Principal | None = None
    guard: Guard | None = None
    call: Call | None = None
    served: str | None = None
    model: str | None = None
    sidecar: Sidecar | None = None
    admitted: bool = False
    remarks: tuple[Remark, ...] = ()
    error: ApiError | None = None
    identify_s: float | None = None
    admit_s: float | None = None
    called_s: float | None = None


def ended(arrival: Arrival, template: str, outcome: Outcome, notes: Notes, timings: Timings) -> Ended:
    """What there is to record of a request that is over."""
    return Ended(
        arrival=arrival,
        endpoint=template,
        outcome=outcome,
        principal=notes.principal,
        call=notes.call,
        known_model=notes.served or (OTHER if notes.call else None),
        admitted=notes.admitted,
        remarks=notes.remarks,
        upstream=notes.sidecar.name if notes.sidecar else None,
        error=notes.error,
        called_s=notes.called_s,
        first_byte_s=timings.first_byte_s,
        settling_s=timings.settling_s,
        rooms=Rooms(
            identify_s=notes.identify_s,
            admit_s=notes.admit_s,
            forward_s=_between(timings.upstream_head_s, timings.durable_s),
            settle_s=_between(timings.settling_s, timings.settled_s),
        ),
    )


def _between(first_s: float | None, second_s: float | None) -> float | None:
    return None if first_s is None or second_s is None else second_s - first_s
