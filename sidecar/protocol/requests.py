"""What a client asks for, read and checked: the records that the endpoints share. No HTTP, no tokens yet."""

import enum
import secrets
from typing import Any

import msgspec

from sidecar.tokenizer.messages import PLAIN, Message, Rendering, Tool
from sidecar.wire.grammars import Grammar
from sidecar.wire.internal import Endpoint

_MASK = (1 << 64) - 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What chats and completions have in common. `max_tokens` of None: nothing was asked for; per choice.

    `max_tokens_param` is the field that said it. Of a prompt the last `truncate_prompt_tokens` are kept, if that is
    not None; -1: as many as leave room for the answer. Nothing but a limit ends an answer before `min_tokens` of
    it. `stop_token_ids` end one beside the model's own; `stop_shown`: what ends it is part of its text;
    `specials_shown`: so are special tokens. No token but `allowed_token_ids` is picked, if there are any, and none
    that completes one of `bad_words`. The answer follows `grammar`, if there is one. `logprobs` of None: no log-
    probabilities; else of so many tokens beside each one picked, called by their ids if `tokens_by_id`.
    `tokens_told`: the ids of prompt and answer are given. `ignored` are fields that nobody knows and the settings
    let pass.
    """

    model: str
    choices: int
    max_tokens: int | None
    max_tokens_param: str
    truncate_prompt_tokens: int | None = None
    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None
    tokens_by_id: bool = False
    tokens_told: bool = False
    seed: int | None
    stop: tuple[str, ...]
    stop_shown: bool = False
    specials_shown: bool = False
    stream: bool
    include_usage: bool
    continuous_usage: bool
    echo_service_tier: bool
    ignored: tuple[str, ...]


class Demand(enum.Enum):
    """What is asked of the model about tools: nothing, to call some, or to call the one that may be called."""

    NONE = "none"
    SOME = "some"
    THIS = "this"


class ToolUse(msgspec.Struct, frozen=True):
    """The tools of a chat. The model is told of `tools`, and may call those that are `callable`.

    `parallel`: several in one answer. `legacy`: they came as functions, and the answer has their shape.
    """

    tools: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    demand: Demand = Demand.NONE
    parallel: bool = True
    legacy: bool = False


class ChatRequest(msgspec.Struct, frozen=True):
    """A body of /v1/chat/completions, or of another endpoint that is a chat. `tool_use` of None: no tools.

    `thoughts_wanted`: the client asked for the model's thoughts by a field of its own (Anthropic's `thinking`).
    """

    options: Options
    messages: tuple[Message, ...]
    rendering: Rendering = PLAIN
    endpoint: Endpoint = Endpoint.CHAT
    tool_use: ToolUse | None = None
    thoughts_wanted: bool = False


class NamedTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A tool by its name, as /v1/responses has it."""

    name: str


class AllowedTools(msgspec.Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    """The tools that may be called, of all that were given."""

    mode: str
    tools: tuple[NamedTool, ...]


ToolChoice = str | NamedTool | AllowedTools


class TextSettings(msgspec.Struct, frozen=True):
    """`format` as OpenAI tells it back: clients parse an answer by it. It may hold a client's JSON schema."""

    verbosity: str
    format: dict[str, Any]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer of /v1/responses tells back of its request, defaults filled in."""

    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    prompt_cache_key: str | None
    reasoning_effort: str | None
    reasoning_summary: str | None
    safety_identifier: str | None
    temperature: float
    tool_choice: ToolChoice
    tools: tuple[Tool, ...]
    top_logprobs: int
    top_p: float
    user: str | None
    text: TextSettings


class ResponsesRequest(ChatRequest, frozen=True, kw_only=True):
    """A body of /v1/responses: a chat with one choice."""

    asked: Asked
    endpoint: Endpoint = Endpoint.RESPONSES


class CompletionRequest(msgspec.Struct, frozen=True):
    """A body of /v1/completions. A prompt is text, or token ids that are used as they are.

    Of `best_of` answers to each prompt the likeliest are given, as many as there are choices. `echo`: the text begins
    with the prompt.
    """

    options: Options
    prompts: tuple[str | tuple[int, ...], ...]
    best_of: int = 1
    echo: bool = False
    endpoint: Endpoint = Endpoint.COMPLETIONS


GenerationRequest = ChatRequest | CompletionRequest


def choice_seeds(seed: int | None, count: int) -> list[int]:
    """A seed for each choice: from the client's, so that it gives the same again, or else at random."""
    base = secrets.randbits(64) if seed is None else seed & _MASK
    return [_mix(base, index) for index in range(count)]


def _mix(seed: int, index: int) -> int:
    """SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), `index` + 1 steps in."""
    state = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
