"""What a rule of ours said of a request, with the rule's name: for the metrics, the log and whoever replays the day.

Any room may refuse so, or remark; the words and the status are the room's. What a rule decides is not known here.
"""

from dataclasses import dataclass
from typing import Final, Literal

from sidecar.wire.errors import INVALID_REQUEST, ApiError

# It would have refused, and is only tried; it lets pass, and says that little is left.
SHADOW: Final = "shadow"
WARN: Final = "warn"


@dataclass(frozen=True, slots=True)
class Remark:
    """What a rule said of a request that it let pass. `rule` is as in RefusedError."""

    rule: str
    decision: Literal["shadow", "warn"]


class RefusedError(ApiError):
    """`rule` is the rule's name in a policy file, where it has one there; always one of a closed set."""

    def __init__(
        self,
        rule: str,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            status,
            message,
            type=type,
            code=code,
            param=param,
            retry_after_s=retry_after_s,
            should_retry=should_retry,
            headers=headers,
        )
        self.rule = rule
