"""What `conf/sidecar.yaml` may say. Read once at start; `TOLLHOUSE_SIDECAR__SECTION__KEY` overrides a value.

Relative paths are relative to the working directory. Units are in the names.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sidecar import yamlfile

ENV_PREFIX = "TOLLHOUSE_SIDECAR__"

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]

# What Transformers' renderer takes or a template has from it: `apply_chat_template`, `render_jinja_template` and the
# globals of its Jinja environment. Names that end as in TOKEN_ENDINGS are those of the tokenizer's special tokens.
RENDERER_NAMES: Final = frozenset(
    {
        *("self", "conversation", "conversations", "messages", "tools", "documents", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens", "padding"),
        *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "kwargs", "loop"),
        *("cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now"),
    }
)
TOKEN_ENDINGS: Final = ("_token", "_tokens")


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is served. `source` is a name from the catalogue, a folder in Hugging Face layout, or a GGUF file.

    `id` is the name clients use. `max_context` of None takes the model's own.
    """

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]
    source: Annotated[str, Meta(min_length=1)]
    max_context: Annotated[int, Meta(ge=8)] | None = None


class Embedding(Model, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An encoder that is served beside the model, for /v1/embeddings; more fields as in `Engine`.

    It runs in an engine process of its own. `max_sequences` is how many texts may be embedded in one step.
    """

    precision: Literal["fp32", "int8"] = "fp32"
    max_sequences: Annotated[int, Meta(ge=1, le=1024)] = 64


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the model runs. `threads` of None leaves torch's own choice.

    `device`: `cuda` is the first GPU that the process sees (CUDA_VISIBLE_DEVICES names another).

    `step_token_budget` bounds the tokens of one step: running sequences take one each, prompts share the rest.
    `kv_tokens` bounds the tokens that all sequences together may hold in the KV cache; None is a share of free memory.
    `prefix_cache_tokens` bounds what is kept of prompts beyond that; None is a quarter of `kv_tokens`, 0 nothing.
    `tier`: the fastest execution tier that may be tried. `speculation`: the most tokens guessed a step while few run.
    """

    precision: Literal["fp32", "bf16", "fp16", "int8", "bnb_int8", "nf4"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    max_sequences: Annotated[int, Meta(ge=1, le=1024)] = 64
    step_token_budget: Annotated[int, Meta(ge=16)] = 512
    kv_tokens: Positive | None = None
    prefix_cache_tokens: Annotated[int, Meta(ge=0)] | None = None
    tier: Literal["auto", "packed", "rows", "sequential"] = "auto"
    speculation: Annotated[int, Meta(ge=0, le=16)] = 4
    threads: Positive | None = None


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of the OpenAI surface. Fields that OpenAI does not have: `refuse` answers 400, `ignore` names them.

    `reasoning_format`: how the model marks its thoughts; `tool_format`: how it writes calls of tools; `auto`: as its
    chat template does.
    `chat_template_kwargs`: the variables of a chat template that clients may set. Raises ValueError for a name that is
    the renderer's own.
    """

    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    max_choices: Annotated[int, Meta(ge=1, le=128)] = 8
    max_prompts: Annotated[int, Meta(ge=1, le=2048)] = 32
    max_messages: Positive = 2048
    max_body_bytes: Positive = 4 * 1024 * 1024
    reasoning_format: Literal["auto", "none", "think"] = "auto"
    tool_format: Literal["auto", "none", "hermes", "llama3", "mistral", "deepseek", "phi"] = "auto"
    chat_template_kwargs: tuple[VariableName, ...] = ("enable_thinking", "thinking", "reasoning_effort")

    def __post_init__(self) -> None:
        for name in self.chat_template_kwargs:
            if name in RENDERER_NAMES or name.endswith(TOKEN_ENDINGS):
                raise ValueError(f"api.chat_template_kwargs: '{name}' is the renderer's own and can never be allowed")


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the front waits for its engine. `stall_s`: sequences run and no sign of life comes.

    `compile_s` is for one schema or grammar to be compiled; of a processor's time it may take two seconds at most.
    """

    load_s: Seconds = 1800.0
    stall_s: Seconds = 10.0
    drain_s: Seconds = 30.0
    compile_s: Seconds = 10.0
    keep_alive_comment_s: Seconds = 10.0


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the metrics page has beside our own names. `compat`: servers whose names for the load are published, too."""

    compat: tuple[Literal["vllm"], ...] = ()


class Sidecar(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `conf/sidecar.yaml`. `max_queue` of None is four times `engine.max_sequences`.

    `embedding` of None serves no embeddings.
    """

    model: Model
    embedding: Embedding | None = None
    socket: str = "run/sidecar.sock"
    cache: str = "~/.cache/tollhouse"
    engine: Engine = Engine()
    api: Api = Api()
    timeouts: Timeouts = Timeouts()
    metrics: Metrics = Metrics()
    max_queue: Positive | None = None
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"


def load_settings(path: Path, environ: dict[str, str]) -> Sidecar:
    """Read the file and the environment. Raises yamlfile.ConfigInvalidError with every problem found."""
    return yamlfile.load(path, Sidecar, environ=environ, env_prefix=ENV_PREFIX)
