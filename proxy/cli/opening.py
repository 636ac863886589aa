"""From the first process of `tollhouse up` to the first answer: wait for readiness, see that there is a key, say so."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.admin.client import AdminClient, NotReachableError
from proxy.admin.records import CreatedKey, NewAccount, NewKey, ServerState
from proxy.cli import welcome
from proxy.cli.child import Child
from proxy.cli.exits import CommandError
from proxy.cli.loadbar import LOADING, STARTING, LoadBar
from proxy.cli.program import program
from proxy.cli.screen import Screen
from proxy.cli.sidecar_command import SidecarConfig
from proxy.clock import Clock
from proxy.console.files import BASE
from proxy.console.front import is_on
from proxy.settings import Proxy
from proxy.sockets import url

POLL_S: Final = 0.1
# A sidecar gives up loading after this by itself (timeouts.load_s of conf/sidecar.yaml).
LONGEST_S: Final = 1800.0
# Until then servers find each other; a reason other than loading that lasts longer is worth a word.
USUAL_S: Final = 20.0
FIRST_ACCOUNT: Final = "default"
FIRST_KEY: Final = "first"


class Opening:
    """One opening. Nothing in it changes."""

    def __init__(self, screen: Screen, settings: Proxy, sidecar: SidecarConfig, first_tier: str, clock: Clock) -> None:
        self._screen = screen
        self._admin = settings.admin
        self._sidecar = sidecar
        self._first_tier = first_tier
        self._clock = clock

    async def open_up(self, sidecar: Child) -> None:
        """Wait until a request can be answered, then tell how to make one. Raises CommandError, NotReachableError."""
        began = self._clock.monotonic()
        with LoadBar(self._screen, self._sidecar.model.id) as bar:

            def tell(reason: str) -> None:
                bar.show(reason, str(sidecar.says("load_phase").get("stage", "")))

            state = await wait_ready(self._state, self._clock, tell, self._screen.warn)
        took_s = self._clock.monotonic() - began
        base_url = f"{url(state.host, state.port, tls=state.tls)}/v1"
        await sidecar.catch_up()
        self._screen.step("Sidecar", described(sidecar.said("ready"), self._sidecar.socket))
        self._screen.step("Proxy", f"{base_url}, ready after {took_s:.1f} s")
        key = await self._make_first_key()
        admin_url = url(state.admin_host, state.admin_port)
        shown = welcome.make(
            base_url=base_url,
            model=self._sidecar.model.id,
            api_key=key.secret if key else None,
            tier=key.tier if key else None,
            admin_url=admin_url,
            console=f"{admin_url}{BASE}" if is_on(self._admin) else None,
        )
        terminal, called = self._screen.out.is_terminal, await asyncio.to_thread(program)
        self._screen.reply(shown, lambda: welcome.text(shown, terminal=terminal, program=called))

    async def _state(self) -> ServerState | None:
        """None before the proxy has opened its sockets; if it never does, it ends, and that is seen elsewhere."""
        try:
            async with AdminClient(self._admin.socket) as client:
                return await client.state()
        except NotReachableError:
            return None

    async def _make_first_key(self) -> CreatedKey | None:
        """A key to begin with, if none was ever made. Made this late, so that no failure can swallow its secret."""
        async with AdminClient(self._admin.socket) as client:
            if await client.list_keys():
                return None
            if FIRST_ACCOUNT not in {account.name for account in await client.list_accounts()}:
                await client.create_account(NewAccount(name=FIRST_ACCOUNT))
            return await client.create_key(NewKey(account=FIRST_ACCOUNT, tier=self._first_tier, name=FIRST_KEY))


async def wait_ready(
    ask: Callable[[], Awaitable[ServerState | None]],
    clock: Clock,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> ServerState:
    """Ask until the answer is "ready"; `tell` hears each reason why it is not. Raises CommandError in the end."""
    began = clock.monotonic()
    warned = ""
    while True:
        state = await ask()
        if state is not None and state.ready:
            return state
        reason = STARTING if state is None else state.reason
        tell(reason)
        waited_s = clock.monotonic() - began
        if waited_s > LONGEST_S:
            raise CommandError(
                f"Not ready after {waited_s / 60:.0f} minutes; the model server is {reason}.",
                hint="run/sidecar.log and run/proxy.log tell more.",
            )
        if waited_s > USUAL_S and reason not in {LOADING, warned}:
            warned = reason
            warn(f"not ready after {waited_s:.0f} s; the model server is {reason}. run/sidecar.log tells more.")
        await asyncio.sleep(POLL_S)


def described(ready: dict[str, object], socket: str) -> str:
    """What the sidecar said of itself when it was ready, for people."""
    parts = [str(ready[name]) for name in ("precision", "tier") if name in ready]
    if "max_context" in ready:
        parts.append(f"{ready['max_context']} tokens of context")
    return ", ".join([socket, *parts])
