"""From a checked request to the sequences the engine runs: its prompts as tokens, and how much each may produce.

Everything that can be refused is refused here, before an answer begins. Pure and synchronous; the encoder is handed in,
and may take long, so a plan is made in a thread.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from sidecar.protocol.calling import grammar_of
from sidecar.protocol.choices import Echo, Telling
from sidecar.protocol.fields import invalid_value
from sidecar.protocol.manner import LAST_WORDS, speech_of
from sidecar.protocol.options import COMPLETION_DEFAULT_TOKENS, check_grammar
from sidecar.protocol.requests import (
    Asked,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Options,
    ResponsesRequest,
    choice_seeds,
)
from sidecar.protocol.speech.dialect import WORDS_ONLY, Dialect, Speech
from sidecar.protocol.ticket import Ticket
from sidecar.tokenizer.messages import PLAIN, Message, Rendering
from sidecar.wire.errors import ApiError, bad_request
from sidecar.wire.frames import Sampling, Submit
from sidecar.wire.internal import Endpoint

# How many tokens of a prompt a detokenizer looks back at, at most.
_LOOKED_BACK_AT: Final = 64
# A longer text is refused before it is tokenised (GUARDS, C2): tokens average about four bytes.
MOST_BYTES_PER_TOKEN: Final = 8

Prompts = tuple[tuple[int, ...], ...]


class Encoder(Protocol):
    """What makes tokens of text; see `sidecar.tokenizer.model_tokenizer`."""

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def encode_chat(self, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def token_strs(self, ids: list[int]) -> list[str]: ...
    def decode_text(self, ids: list[int]) -> tuple[str, list[int]]: ...
    def text_offsets(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model allows, the tokens that end its answers, and its ways to say things."""

    model: str
    max_context: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    dialect: Dialect = WORDS_ONLY


@dataclass(frozen=True, slots=True)
class Plan:
    """A request ready to run. Its sequences are indexed by prompt, then choice: `prompt × best_of + choice`.

    `best_of` is how many a prompt has; `tellings` says what each tells beside its text, `speech` how it is read.
    `asked` is of /v1/responses only, `thoughts_wanted` of /v1/messages.
    """

    ticket: Ticket
    options: Options
    endpoint: Endpoint
    prompt_tokens: int
    submits: tuple[Submit, ...]
    best_of: int
    tellings: tuple[Telling, ...]
    asked: Asked | None = None
    speech: Speech | None = None
    thoughts_wanted: bool = False

    @property
    def calls(self) -> bool:
        """Whether an answer may have calls."""
        return self.speech is not None and self.speech.offered is not None

    @property
    def legacy_calls(self) -> bool:
        """Whether they are told as `function_call`."""
        return self.speech is not None and self.speech.legacy

    @property
    def told_prompts(self) -> list[list[int]] | None:
        """The prompt of each choice that is given, if their tokens are to be told."""
        if not self.options.tokens_told:
            return None
        prompts = self.submits[:: self.best_of]
        return [submit.prompt_ids for submit in prompts for _ in range(self.options.choices)]


def check_model(wanted: str, served: str) -> None:
    """Raises ApiError 404 for a model that is not served here."""
    if wanted != served:
        raise model_not_found(wanted)


def model_not_found(name: str) -> ApiError:
    return ApiError(
        404,
        f"The model '{name[:200]}' does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def encode(request: GenerationRequest, encoder: Encoder, limits: Limits) -> Prompts:
    """The prompts as tokens. Raises ApiError 400 for one that is empty, too long or not of this vocabulary."""
    if isinstance(request, ChatRequest):
        check_chat_bytes(request.messages, request.rendering, limits, request.endpoint.prompt_field)
        prompts: Prompts = (tuple(encoder.encode_chat(request.messages, request.rendering)),)
    else:
        prompts = tuple(_encode_prompt(prompt, encoder, limits) for prompt in request.prompts)
    prompts = tuple(_truncated(ids, request.options, limits) for ids in prompts)
    for ids in prompts:
        if not ids:
            raise bad_request("The prompt has no tokens.", param=request.endpoint.prompt_field, code="invalid_value")
        # Where only the prompt is wanted, it may fill the context.
        if len(ids) + (request.options.max_tokens != 0) > limits.max_context:
            raise _too_long(request, len(ids), limits)
    return prompts


def _truncated(ids: tuple[int, ...], options: Options, limits: Limits) -> tuple[int, ...]:
    most = options.truncate_prompt_tokens
    if most is None:
        return ids
    if most == -1:
        answer = 1 if options.max_tokens is None else options.max_tokens
        most = max(1, limits.max_context - answer)
    return ids[-most:]


def make_plan(request: GenerationRequest, prompts: Prompts, ticket: Ticket, limits: Limits, encoder: Encoder) -> Plan:
    """Raises ApiError 400 if the answer cannot fit into the context window, or the prompt into its reservation."""
    prompt_end = "" if isinstance(request, CompletionRequest) else encoder.decode(list(prompts[0][-LAST_WORDS:]))
    speech = speech_of(request, prompt_end, limits.dialect)
    options = msgspec.structs.replace(request.options, grammar=grammar_of(request, speech))
    check_grammar(options)
    _check_vocabulary(options, limits)
    sampling = _sampling(options, encoder, limits)
    _check_choice(sampling, limits)
    prompt_tokens = sum(map(len, prompts))
    best_of = options.choices if isinstance(request, ChatRequest) else request.best_of
    echoes = isinstance(request, CompletionRequest) and request.echo
    # What is the best is known by the log-probabilities.
    logprobs = 0 if options.logprobs is None and best_of > options.choices else options.logprobs
    share = _reserved_share(request, prompt_tokens, len(prompts) * best_of, ticket)
    seeds = _seeds(options, len(prompts), best_of)
    grammar = "" if options.grammar is None else options.grammar.key
    submits = [
        Submit(
            request_id=ticket.request_id,
            index=index,
            prompt_ids=list(ids),
            max_new_tokens=_output(request, len(ids), share, ticket, limits),
            sampling=msgspec.structs.replace(sampling, seed=seeds[index]),
            stop_token_ids=list(stop_token_ids(options, limits.stop_token_ids)),
            tenant=ticket.tenant,
            weight=ticket.weight,
            priority=ticket.priority,
            deadline_ms=ticket.deadline_ms,
            counts_prompt=index % best_of == 0,
            logprobs=logprobs,
            prompt_logprobs=options.logprobs if echoes else None,
            cache_scope=ticket.cache_scope,
            grammar=grammar,
        )
        for index, ids in enumerate(ids for ids in prompts for _ in range(best_of))
    ]
    tellings = tuple(telling for telling in _tellings(request, prompts, encoder) for _ in range(best_of))
    asked = request.asked if isinstance(request, ResponsesRequest) else None
    wanted = isinstance(request, ChatRequest) and request.thoughts_wanted
    told = (tellings, asked, speech, wanted)
    return Plan(ticket, options, request.endpoint, prompt_tokens, tuple(submits), best_of, *told)


def _tellings(request: GenerationRequest, prompts: Prompts, encoder: Encoder) -> list[Telling]:
    """What the choices of each prompt tell."""
    logprobs, tokens = request.options.logprobs is not None, request.options.tokens_told
    if isinstance(request, ChatRequest):
        # What begins a message has nothing before it.
        continued = request.rendering.continue_final_message
        before = prompts[0][-_LOOKED_BACK_AT:] if continued else ()
        return [Telling(logprobs, tokens=tokens, before=before)]
    tellings: list[Telling] = []
    for prompt, ids in zip(request.prompts, prompts, strict=True):
        before = ids[-_LOOKED_BACK_AT:]
        if not logprobs and not request.echo:
            tellings.append(Telling(before=before, tokens=tokens))
            continue
        text, offsets = _prompt_text(prompt, ids, encoder, request.options, offsets=logprobs and request.echo)
        echo = Echo(text, ids, tuple(offsets)) if request.echo else None
        tellings.append(Telling(logprobs, end_token=True, echo=echo, offset=len(text), before=before, tokens=tokens))
    return tellings


def _prompt_text(
    prompt: str | tuple[int, ...], ids: tuple[int, ...], encoder: Encoder, options: Options, *, offsets: bool
) -> tuple[str, list[int]]:
    """A prompt as it is given back, and where in it each token begins, if that is wanted; `ids` are kept of it.

    One that was text is given back as it was: what the tokenizer adds to it is no part of it.
    """
    if not isinstance(prompt, str):
        return encoder.decode_text(list(ids))
    if options.truncate_prompt_tokens is None:
        return prompt, encoder.text_offsets(prompt) if offsets else []
    kept = encoder.text_offsets(prompt)[-len(ids) :]
    return prompt[kept[0] :], [at - kept[0] for at in kept]


def stop_token_ids(options: Options, ends: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that end an answer: the model's own `ends`, unless they are to be ignored, and the client's."""
    return (*(() if options.ignore_eos else ends), *options.stop_token_ids)


def _check_vocabulary(options: Options, limits: Limits) -> None:
    named = {
        "logit_bias": options.logit_bias,
        "stop_token_ids": options.stop_token_ids,
        "allowed_token_ids": options.allowed_token_ids,
    }
    for name, tokens in named.items():
        check_tokens(tokens, name, limits)


def _check_choice(sampling: Sampling, limits: Limits) -> None:
    """Raises ApiError 400 where there may be no token to pick."""
    forbidden = {*sampling.end_token_ids, *(word[-1] for word in sampling.bad_words)}
    if all(token in forbidden for token in sampling.allowed_token_ids or range(limits.vocab_size)):
        param = "allowed_token_ids" if sampling.allowed_token_ids else "bad_words"
        raise invalid_value(param, "'min_tokens' and 'bad_words' may leave no token to pick.")


def _encode_prompt(prompt: str | tuple[int, ...], encoder: Encoder, limits: Limits) -> tuple[int, ...]:
    if isinstance(prompt, str):
        check_bytes(len(prompt.encode()), "prompt", limits)
        return tuple(encoder.encode_text(prompt))
    check_tokens(prompt, "prompt", limits)
    return prompt


def check_tokens(ids: Iterable[int], param: str, limits: Limits) -> None:
    """Raises ApiError 400 for a token that the model does not have."""
    for token in ids:
        if token >= limits.vocab_size:
            raise invalid_value(param, f"token {token} is outside the vocabulary of {limits.vocab_size} tokens.")


def check_chat_bytes(
    messages: tuple[Message, ...], rendering: Rendering, limits: Limits, param: str = "messages"
) -> None:
    """Raises ApiError 400 as `check_bytes`, for all that the chat template is given; `param` is where messages are."""
    documents = sum(_size(*document, *document.values()) for document in rendering.documents)
    check_bytes(documents, "documents", limits)
    tools = sum(_size(tool.name, tool.description or "", json.dumps(tool.parameters)) for tool in rendering.tools)
    check_bytes(tools, "tools", limits)
    variables = _size(*rendering.variables, *map(str, rendering.variables.values()))
    written = sum(_message_size(message) for message in messages)
    check_bytes(written + documents + tools + variables, param, limits)


def _message_size(message: Message) -> int:
    return _size(message.content, *(text for call in message.tool_calls for text in (call.name, call.arguments)))


def _size(*texts: str) -> int:
    """In bytes."""
    return sum(len(text.encode()) for text in texts)


def check_bytes(size: int, param: str, limits: Limits) -> None:
    """Raises ApiError 400 for a text that is too long to be worth tokenising."""
    if size > MOST_BYTES_PER_TOKEN * limits.max_context:
        raise bad_request(
            f"This model's maximum context length is {limits.max_context} tokens. However, your {param} has {size} "
            f"bytes, more than {MOST_BYTES_PER_TOKEN} for each of them. Please reduce its length.",
            param=param,
            code="context_length_exceeded",
        )


def _too_long(request: GenerationRequest, prompt_tokens: int, limits: Limits) -> ApiError:
    param = request.endpoint.prompt_field
    return bad_request(
        f"This model's maximum context length is {limits.max_context} tokens. However, your {param} resulted in "
        f"{prompt_tokens} tokens, and the answer needs one at least. Please reduce the length of the {param}.",
        param=param,
        code="context_length_exceeded",
    )


def _reserved_share(request: GenerationRequest, prompt_tokens: int, sequences: int, ticket: Ticket) -> int | None:
    """What the reservation leaves for each sequence; None without a reservation."""
    if ticket.max_total_tokens is None:
        return None
    left = ticket.max_total_tokens - prompt_tokens
    if left < sequences:
        raise bad_request(
            f"The prompt has {prompt_tokens} tokens; {ticket.max_total_tokens} are reserved for it and its answer.",
            param=request.endpoint.prompt_field,
            code="reservation_exceeded",
        )
    return left // sequences


def _output(request: GenerationRequest, prompt_tokens: int, share: int | None, ticket: Ticket, limits: Limits) -> int:
    """How many tokens one sequence may produce. A client's own limit is never cut to the context: it is refused."""
    asked = request.options.max_tokens
    left = limits.max_context - prompt_tokens
    if asked is not None and asked > left:
        param = request.endpoint.prompt_field
        raise bad_request(
            f"This model's maximum context length is {limits.max_context} tokens. However, you requested "
            f"{prompt_tokens + asked} tokens ({prompt_tokens} in the {param}, {asked} in the completion). Please "
            f"reduce the length of the {param} or completion.",
            param=param,
            code="context_length_exceeded",
        )
    if asked is None and isinstance(request, CompletionRequest) and ticket.max_output_tokens is None:
        asked = COMPLETION_DEFAULT_TOKENS
    ceilings = (asked, ticket.max_output_tokens, share, left)
    most = min(ceiling for ceiling in ceilings if ceiling is not None)
    if request.options.min_tokens > most:
        raise invalid_value("min_tokens", f"the answer may have {most} tokens at most.")
    return most


def _seeds(options: Options, prompts: int, best_of: int) -> list[int]:
    """A seed for each sequence. A client's seed gives a prompt the same choices, whatever stands beside it."""
    if options.seed is None:
        return choice_seeds(None, prompts * best_of)
    return choice_seeds(options.seed, best_of) * prompts


def _sampling(options: Options, encoder: Encoder, limits: Limits) -> Sampling:
    """That of every choice, but for its seed."""
    # A top_p of 0 keeps the most likely token and no other.
    greedy = options.temperature == 0 or options.top_p == 0
    return Sampling(
        temperature=0.0 if greedy else options.temperature,
        top_p=options.top_p or 1.0,
        top_k=options.top_k,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=options.repetition_penalty,
        logit_bias=options.logit_bias,
        min_tokens=options.min_tokens,
        end_token_ids=_held_back(options, limits),
        allowed_token_ids=sorted(set(options.allowed_token_ids)),
        bad_words=_bad_words(options, encoder, limits),
    )


def _held_back(options: Options, limits: Limits) -> list[int]:
    """What `min_tokens` holds back: also the model's ends that end nothing here, which no answer goes on after."""
    if not options.min_tokens:
        return []
    ends = {*limits.stop_token_ids, *options.stop_token_ids}
    return sorted(token for token in ends if token < limits.vocab_size)


def _bad_words(options: Options, encoder: Encoder, limits: Limits) -> list[list[int]]:
    """Each word as its tokens, at the beginning of a text and behind a space: vLLM's reading of it.

    vLLM leaves out the second where it has another number of tokens, and with it some words behind a space.
    """
    words = [space + word.lstrip() for word in options.bad_words for space in ("", " ")]
    found = dict.fromkeys(tuple(encoder.encode_text(word, add_special_tokens=False)) for word in words)
    return [list(ids) for ids in found if ids and max(ids) < limits.vocab_size]
