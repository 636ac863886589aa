"""What an operator sees while a model is fetched: bars on a terminal, a line for each stage elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from sidecar.jsonlog import JsonLog


class FetchScreen:
    """Shows progress; `fetch` is handed it. Mutable: the bars, and `_task`, the one of the stage that runs."""

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def stage(self, name: str) -> None:
        self._finish()
        if self._bars.disable:
            self._console.print(f"{self._name}: {name}", markup=False, highlight=False, soft_wrap=True)
        # Without a total the bar only shows that something goes on; `advance` gives it one.
        self._task = self._bars.add_task(f"{self._name}: {name}", total=None)

    def advance(self, fraction: float) -> None:
        if self._task is not None:
            self._bars.update(self._task, total=1.0, completed=fraction)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            self._finish()
        self._bars.stop()

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, total=1.0, completed=1.0)


class LoggedFetch:
    """For a server, whose every line is JSON: the stages as log events."""

    def __init__(self, log: JsonLog, name: str) -> None:
        self._log = log
        self._name = name

    def stage(self, name: str) -> None:
        self._log.info("model_fetch", model=self._name, stage=name)

    def advance(self, fraction: float) -> None:
        """Not worth a line."""
