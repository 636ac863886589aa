"""What a running server says of itself, for tests of who asks it."""

from typing import Any

from proxy.admin.records import ServerState, UpstreamState


def server_state(reason: str = "", upstreams: dict[str, str] | None = None, **more: Any) -> ServerState:
    """Ready unless there is a reason; so are its upstreams, whose reasons these are by their names."""
    return ServerState(
        version="0.1.0",
        pid=7,
        ready=not reason,
        reason=reason,
        host="127.0.0.1",
        port=8000,
        admin_host="127.0.0.1",
        admin_port=8001,
        boot_id="boot_1",
        policy_revision="abc",
        requests_in_progress=0,
        upstreams=[UpstreamState(name, not why, why, []) for name, why in (upstreams or {}).items()],
        **more,
    )
