"""How a command ends: the exit codes, and the one error that carries its code, its words and what to do about it."""

import enum


class Exit(enum.IntEnum):
    """What the shell is told. 130 is what shells give to a program that Ctrl-C ended (128 + SIGINT)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG_INVALID = 3
    NOT_REACHABLE = 4
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked. `hint` is what the operator can do about it, as a sentence."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
