"""What a small model can be forced to write about a city, by a schema or as the arguments of a tool."""

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from tests.e2e.house import MODEL


class City(BaseModel):
    """All is bounded: a small model finds no end of a text by itself."""

    name: Literal["Paris", "Berlin", "Rome"]
    people: int = Field(ge=0, le=99_999_999)
    old: bool


QUESTION: Final[Any] = [{"role": "user", "content": "Tell me about Paris."}]
GREEDY: Final[Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 64}
