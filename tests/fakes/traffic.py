"""Random requests to a sidecar: good ones, hostile ones, and ones whose client leaves. Pure; the seed decides all."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "once", "upon", "time", "house", "sea", "Grüße", "你好", "🙂", "\n")
TENANTS = ("", "a", "b", "c")
# A third of all, halved between the two kinds.
HOSTILE_SHARE = LEAVING_SHARE = 1 / 6

Body = dict[str, Any]


@dataclass(frozen=True)
class Leaving:
    """When a client goes: after some seconds, wherever its request is then, or after some lines of its answer."""

    after_s: float | None = None
    after_lines: int | None = None


@dataclass(frozen=True)
class Ask:
    """One request. `hostile` ones must be refused; `timed` ones may run past their deadline."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    stream: bool = False
    hostile: bool = False
    timed: bool = False
    leaving: Leaving | None = None


class Traffic:
    """Mutable: the random numbers, and how many requests were made."""

    def __init__(self, seed: int, model: str, context: int) -> None:
        self._random = random.Random(seed)
        self._model = model
        self._context = context
        self._made = 0

    def next(self) -> Ask:
        self._made += 1
        dice = self._random.random()
        if dice < HOSTILE_SHARE:
            return self._hostile()
        leaving = self._leaving() if dice < HOSTILE_SHARE + LEAVING_SHARE else None
        path, body = self._good()
        headers = self._headers()
        timed = self._random.random() < 0.05
        if timed:
            headers["x-tollhouse-deadline-ms"] = str(self._random.choice((1, 20, 200)))
        stream = bool(body.get("stream"))
        return Ask(path, _encoded(body), headers, stream=stream, timed=timed, leaving=leaving)

    def _leaving(self) -> Leaving:
        if self._random.random() < 0.5:
            return Leaving(after_s=self._random.random() * 0.1)
        return Leaving(after_lines=self._random.randrange(12))

    def _headers(self) -> dict[str, str]:
        """As a proxy sends them, or none."""
        if self._random.random() < 0.3:
            return {}
        headers = {
            "x-tollhouse-request-id": f"req_{self._made:08d}_{self._random.randrange(10**9)}",
            "x-tollhouse-tenant": self._random.choice(TENANTS),
            "x-tollhouse-weight": self._random.choice(("1", "3", "0.5")),
            "x-tollhouse-priority": self._random.choice(("0", "0", "0", "5", "-5")),
            "x-tollhouse-cache-scope": self._random.choice(TENANTS),
        }
        return {name: value for name, value in headers.items() if value}

    def _good(self) -> tuple[str, Body]:
        body: Body = {"model": self._model, "max_tokens": self._random.choice((1, 2, 5, 12, 24, 60))}
        if self._random.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        optional: list[tuple[str, Callable[[], Any]]] = [
            ("temperature", lambda: self._random.choice((0, 0.7, 1, 2))),
            ("top_p", self._random.random),
            ("top_k", lambda: self._random.randrange(50)),
            ("seed", lambda: self._random.randrange(2**63)),
            ("n", lambda: self._random.choice((1, 2, 3))),
            ("stop", lambda: self._random.choice((" ", ["the", "e"], ["never in a random answer"]))),
            ("user", lambda: "somebody"),
        ]
        body |= {name: make() for name, make in optional if self._random.random() < 0.3}
        if self._random.random() < 0.5:
            return CHAT, body | {"messages": [{"role": "user", "content": self._text()}]}
        prompts = (self._text(), self._ids(), [self._text(), self._text()], [self._ids(), self._ids()])
        return COMPLETIONS, body | {"prompt": self._random.choice(prompts)}

    def _text(self) -> str:
        # A quarter of the context in tokens at most, so that no answer is too long.
        return " ".join(self._random.choices(WORDS, k=self._random.choice((1, 3, 8, self._context // 16))))

    def _ids(self) -> list[int]:
        return [self._random.randrange(3, 250) for _ in range(self._random.choice((1, 5, 40, self._context // 2)))]

    def _hostile(self) -> Ask:
        path, body = self._good()
        return self._random.choice((self._bad_bytes, self._bad_field, self._bad_prompt, self._bad_head))(path, body)

    def _bad_bytes(self, path: str, body: Body) -> Ask:
        whole = _encoded(body)
        cut = whole[: self._random.randrange(len(whole))]
        nested = b"[" * 100_000
        raw = (
            cut,
            nested,
            b"",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe{}",
            b'{"a":' * 1000,
            whole[:-1] + b',"max_tokens":}',
        )
        return Ask(path, self._random.choice(raw), hostile=True)

    def _bad_field(self, path: str, body: Body) -> Ask:
        name, value = self._random.choice(BAD_FIELDS)
        return Ask(path, _encoded(body | {name: value}), self._headers(), hostile=True)

    def _bad_prompt(self, path: str, body: Body) -> Ask:
        name, values = ("messages", BAD_MESSAGES) if path == CHAT else ("prompt", BAD_PROMPTS)
        long = "the cat sat on the mat " * self._context
        endless: Any = [{"role": "user", "content": long}] if path == CHAT else long
        return Ask(
            path, _encoded(body | {name: self._random.choice((*values, endless))}), self._headers(), hostile=True
        )

    def _bad_head(self, path: str, body: Body) -> Ask:
        whole = _encoded(body)
        asks = [Ask(path, whole, self._headers() | headers, hostile=True) for headers in BAD_HEADERS]
        asks += [
            Ask("/v1/chat/completion", whole, hostile=True),
            Ask(path, b"", method="GET", hostile=True),
            Ask(path, whole, method="DELETE", hostile=True),
            Ask(path, b" " * (4 * 1024 * 1024 + 1), hostile=True),
        ]
        return self._random.choice(asks)


BAD_FIELDS: tuple[tuple[str, Any], ...] = (
    ("model", "another"),
    ("model", None),
    ("model", 5),
    ("temperature", "hot"),
    ("temperature", 1e308),
    ("temperature", -1),
    ("top_p", 2),
    ("top_p", True),
    ("top_k", 10**30),
    ("top_k", 0.5),
    ("seed", 10**40),
    ("n", 0),
    ("n", 10**9),
    ("n", "3"),
    ("max_tokens", -1),
    ("max_tokens", 10**30),
    ("max_tokens", 1.5),
    ("max_tokens", "many"),
    ("max_tokens", 100_000),
    ("stream", "yes"),
    ("stream_options", 7),
    ("stop", 7),
    ("stop", [[]]),
    ("stop", ["x"] * 1000),
    ("stop", "x" * 100_000),
    ("presence_penalty", "much"),
    ("presence_penalty", 1e9),
    ("logit_bias", [1]),
    ("logit_bias", {"a": "b"}),
    ("logprobs", "all"),
    ("surprise", 1),
    ("__class__", {}),
    ("best_of", 10**9),
    ("user", 5),
    ("service_tier", "gold"),
)
BAD_MESSAGES: tuple[Any, ...] = (
    None,
    5,
    [],
    "hello",
    [5],
    [{}],
    [{"role": "user"}],
    [{"role": "pirate", "content": "arr"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    [{"role": "user", "content": "a"}] * 5000,
)
BAD_PROMPTS: tuple[Any, ...] = (
    None,
    5,
    [],
    {},
    "",
    [[]],
    [-1],
    [1.5],
    [True],
    [10**6],
    [2**70],
    [1] * 5000,
    ["a"] * 5000,
    [[1], "a", 5],
    [None],
)
BAD_HEADERS: tuple[dict[str, str], ...] = (
    {"x-tollhouse-request-id": "with space"},
    {"x-tollhouse-request-id": "x" * 41},
    {"x-tollhouse-weight": "0"},
    {"x-tollhouse-weight": "nan"},
    {"x-tollhouse-weight": "-1"},
    {"x-tollhouse-priority": "first"},
    {"x-tollhouse-priority": "9" * 50},
    {"x-tollhouse-deadline-ms": "0"},
    {"x-tollhouse-tenant": "x" * 1000},
    {"x-tollhouse-max-total-tokens": "1"},
    {"content-encoding": "gzip"},
)


def _encoded(body: Body) -> bytes:
    return json.dumps(body).encode()
