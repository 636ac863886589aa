"""Where a command speaks: its result on stdout, for people or as one JSON document, and all remarks on stderr.

Tables and colours are for terminals; a pipe gets tab-separated lines without a header. Rich honours NO_COLOR itself.
"""

from collections.abc import Callable, Sequence
from typing import Final, TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from proxy.cli.exits import CommandError, Exit
from sidecar.yamlfile import Problem

DONE: Final = "✓"
GAP: Final = 3
_JSON_INDENT: Final = 2


class Screen:
    """One command's two streams. Nothing here changes after it is made but what the streams show."""

    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.err = Console(file=err, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def reply(self, document: object, people: Callable[[], RenderableType]) -> None:
        """Give the result: `document` to a program, what `people` makes to anyone else."""
        if self.as_json:
            self._document(document)
        elif isinstance(shown := people(), str):
            self._plain(shown)
        else:
            self.out.print(shown)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
        """Rows under columns on a terminal, tab-separated lines elsewhere. A column named `…#` has numbers."""
        if not self.out.is_terminal:
            return "\n".join("\t".join(row) for row in rows)
        names = [name.removesuffix("#") for name in columns]
        widths = [max(map(cell_len, cells)) for cells in zip(names, *rows, strict=True)]
        right = [name.endswith("#") for name in columns]
        # A long row runs over the edge, as in `ps`: half an identifier is none.
        lines = [
            (" " * GAP).join(_padded(*cell) for cell in zip(cells, widths, right, strict=True)).rstrip()
            for cells in (names, *rows)
        ]
        return Text.assemble((lines[0], "bold"), *(f"\n{line}" for line in lines[1:]))

    def remark(self, text: RenderableType) -> None:
        """Something beside the result; `-q` leaves it out."""
        if not self.quiet:
            self.err.print(text)

    def step(self, what: str, detail: str = "") -> None:
        """A step that is done, one line."""
        self.remark(Text.assemble((f"  {DONE} ", "green"), f"{what:<9} ", (detail, "dim")))

    def warn(self, text: str) -> None:
        """Something to look at, also under `-q`."""
        self.err.print(Text.assemble(("Warning: ", "bold yellow"), text))

    def failed(self, error: CommandError) -> None:
        """Say why a command ended, to people on stderr and to a program that asked for JSON on stdout."""
        self.err.print(Text.assemble(("Error: ", "bold red"), error.message))
        if error.hint:
            self.err.print(Text(error.hint))
        if self.as_json:
            self._document({"error": {"message": error.message, "hint": error.hint, "exit_code": int(error.code)}})

    def invalid(self, problems: Sequence[Problem], hint: str = "") -> None:
        """Say everything that is wrong with a configuration, a line each."""
        for problem in problems:
            place = str(problem).removesuffix(problem.message)
            self.err.print(Text.assemble((place, "bold"), problem.message))
        self.err.print(Text(f"{counted(len(problems), 'problem')} to repair." + (f" {hint}" if hint else "")))
        if self.as_json:
            self._document({"problems": problems, "exit_code": int(Exit.CONFIG_INVALID)})

    def _document(self, document: object) -> None:
        text = msgspec.json.encode(document)
        if self.out.is_terminal:
            text = msgspec.json.format(text, indent=_JSON_INDENT)
        self._plain(text.decode())

    def _plain(self, text: str) -> None:
        # Not through rich, which would turn tabs into blanks.
        self.out.file.write(text and text + "\n")
        self.out.file.flush()


def _padded(cell: str, width: int, right: bool) -> str:
    padding = " " * (width - cell_len(cell))
    return padding + cell if right else cell + padding


def counted(number: int, noun: str) -> str:
    """`1 problem`, `2 problems`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
