"""What is seen while the model loads: a bar on a terminal, a line for each phase elsewhere, nothing under `-q`."""

from types import TracebackType
from typing import Final, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from proxy.cli.screen import Screen

STARTING: Final = "starting"
LOADING: Final = "loading"
# By the engine's own names (sidecar/engine/loader.py): how much is done when one begins, about, and what it does.
PHASES: Final = {
    "read": (0.5, "reading the weights"),
    "reference": (0.55, "asking the stock model"),
    "parity": (0.65, "comparing answers with it"),
    "pack": (0.8, "packing the weights"),
    "warm": (0.9, "comparing once more"),
}
BEGUN: Final = 0.1


class LoadBar:
    """Mutable: the bar, `_done` (it never goes back), and `_said`, the newest words."""

    def __init__(self, screen: Screen, model: str) -> None:
        self._screen = screen
        self._model = model
        self._done = 0.0
        self._said = ""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        disable = screen.quiet or not screen.err.is_terminal
        self._bar = Progress(*columns, console=screen.err, transient=True, disable=disable)
        self._task = self._bar.add_task(f" {model}: {STARTING}", total=1.0)

    def show(self, reason: str, phase: str) -> None:
        """`reason` is why it is not ready yet, `phase` what its engine does, empty while that is not known."""
        done, words = PHASES.get(phase, (BEGUN, ""))
        if reason != LOADING:
            done, words = 0.0, ""
        said = f"{reason}: {words}" if words else reason
        self._done = max(self._done, done)
        self._bar.update(self._task, description=f" {self._model}: {said}", completed=self._done)
        # A terminal has the bar; elsewhere each of the phases is worth a line, and what comes before is not.
        if words and said != self._said and self._bar.disable:
            self._screen.remark(f"{self._model}: {said}")
        self._said = said

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
