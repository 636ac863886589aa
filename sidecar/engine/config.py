"""What the engine process is told at start, as JSON on its command line."""

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`model_path` is a folder of safetensors, config and tokenizer; `slots_path` the usage slot file to write.

    `max_context` of None takes the model's own; `kv_tokens` of None a share of free memory; `threads` of None torch's.
    """

    model_path: str
    slots_path: str
    precision: str
    device: str
    max_sequences: int
    step_token_budget: int
    max_context: int | None
    kv_tokens: int | None
    threads: int | None
    tier: str = "auto"
    prefix_tokens: int | None = None
    speculation: int = 0
    embeds: bool = False
