"""What can go wrong with a model's files, told to an operator: what, where, and what to do."""


class CatalogError(Exception):
    """A model cannot be fetched or used. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnreachableError(CatalogError):
    """The package index did not answer."""
