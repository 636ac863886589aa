"""The servers of `up` together: started in order, watched, ended in the opposite order, and hurried by signals."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.cli.exits import CommandError, Exit
from proxy.cli.household import Household


class FakeChild:
    """A server whose end the test decides. Mutable: everything."""

    def __init__(self, name: str, diary: list[str], *, stubborn: bool = False) -> None:
        self.name = name
        self.log = Path(f"run/{name}.log")
        self.signals: list[int] = []
        self.limit_s = 0.0
        self.words = "  its last words"
        self._diary = diary
        self._stubborn = stubborn
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self._diary.append(f"start {self.name}")

    async def follow(self, echo: Callable[[str], None] | None = None) -> None:
        if echo is not None:
            echo("a line")
        await asyncio.Event().wait()

    async def ended(self) -> int:
        return await asyncio.shield(self._end)

    async def last_words(self) -> str:
        return self.words

    async def stop(self, limit_s: float) -> bool:
        self._diary.append(f"stop {self.name}")
        self.limit_s = limit_s
        self.end(0)
        return not self._stubborn

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def end(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)


class Setting:
    """A household of two fakes, and what was said."""

    def __init__(self, **options: Any) -> None:
        self.diary: list[str] = []
        self.said: list[str] = []
        self.sidecar = FakeChild("sidecar", self.diary, **options)
        self.proxy = FakeChild("proxy", self.diary, **options)
        self.household = Household([self.sidecar, self.proxy], drain_s=5, remark=self.said.append)
        self.open = asyncio.Event()

    async def open_up(self) -> None:
        self.diary.append("open")
        self.open.set()

    async def never_open(self) -> None:
        self.open.set()
        await asyncio.Event().wait()


async def test_the_sidecar_starts_first_and_the_proxy_ends_first() -> None:
    setting = Setting()
    living = asyncio.create_task(setting.household.live(setting.open_up))
    await setting.open.wait()
    setting.household.interrupt()
    assert await living is Exit.OK
    assert setting.diary == ["start sidecar", "start proxy", "open", "stop proxy", "stop sidecar"]
    assert setting.proxy.limit_s > 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_and_is_not_ours_afterwards(number: signal.Signals) -> None:
    setting = Setting()
    living = asyncio.create_task(setting.household.live(setting.open_up))
    await setting.open.wait()
    os.kill(os.getpid(), number)
    assert await living is Exit.OK
    assert "Ending" in setting.said[0]
    assert asyncio.get_running_loop().remove_signal_handler(number) is False


async def test_an_end_before_readiness_is_an_interruption() -> None:
    setting = Setting()
    living = asyncio.create_task(setting.household.live(setting.never_open))
    await setting.open.wait()
    setting.household.interrupt()
    assert await living is Exit.INTERRUPTED
    assert setting.diary[-2:] == ["stop proxy", "stop sidecar"]


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize(("code", "how"), [(3, "with exit code 3"), (-9, "by SIGKILL")])
async def test_a_child_that_ends_by_itself_ends_all_and_is_quoted(opened: bool, code: int, how: str) -> None:
    setting = Setting()
    living = asyncio.create_task(setting.household.live(setting.open_up if opened else setting.never_open))
    await setting.open.wait()
    setting.sidecar.end(code)
    with pytest.raises(CommandError) as ended:
        await living
    assert ended.value.message == f"The sidecar ended {how}. The end of run/sidecar.log:\n\n  its last words\n"
    assert setting.diary[-2:] == ["stop proxy", "stop sidecar"]


async def test_what_opening_raises_ends_all() -> None:
    setting = Setting()

    async def fail() -> None:
        raise CommandError("no key")

    with pytest.raises(CommandError, match="no key"):
        await setting.household.live(fail)
    assert setting.diary[-2:] == ["stop proxy", "stop sidecar"]


async def test_the_second_wish_hurries_and_the_third_kills() -> None:
    setting = Setting()
    for _ in range(3):
        setting.household.interrupt()
    assert setting.proxy.signals == setting.sidecar.signals == [signal.SIGTERM, signal.SIGKILL]
    assert len(setting.said) == 1


async def test_a_child_that_had_to_be_killed_is_a_failure() -> None:
    setting = Setting(stubborn=True)
    living = asyncio.create_task(setting.household.live(setting.open_up))
    await setting.open.wait()
    setting.household.interrupt()
    assert await living is Exit.FAILED
    assert setting.said[1:] == [
        "The proxy did not end well; run/proxy.log tells more.",
        "The sidecar did not end well; run/sidecar.log tells more.",
    ]


async def test_a_log_that_says_nothing_is_not_pointed_to() -> None:
    setting = Setting(stubborn=True)
    setting.proxy.words = setting.sidecar.words = ""
    living = asyncio.create_task(setting.household.live(setting.open_up))
    await setting.open.wait()
    setting.household.interrupt()
    assert await living is Exit.FAILED
    assert setting.said[1:] == ["The proxy did not end well.", "The sidecar did not end well."]


async def test_log_lines_are_echoed_with_their_child() -> None:
    setting = Setting()
    heard: list[tuple[str, str]] = []
    living = asyncio.create_task(
        setting.household.live(setting.never_open, lambda child, line: heard.append((child.name, line)))
    )
    await setting.open.wait()
    setting.household.interrupt()
    await living
    assert sorted(heard) == [("proxy", "a line"), ("sidecar", "a line")]
