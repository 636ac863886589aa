"""Tiny random models of every family the engine promises, whose greedy output varies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 128
CONTEXT = 192

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Family:
    """`model_type` is Transformers'; `tier` the fastest one it runs on; `more` what its config has beside the usual."""

    name: str
    model_type: str
    tier: str = "packed"
    more: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def config(self) -> Any:
        told = {key: value for key, value in {**_SMALL, **self.more}.items() if key not in self.without}
        return AutoConfig.for_model(self.model_type, **told)


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_HEADS_OF_EIGHT = ("num_key_value_heads", "head_dim", "intermediate_size")

FAMILIES = (
    Family("llama", "llama"),
    Family("mistral with a sliding window", "mistral", more={"sliding_window": 9}),
    Family("phi", "phi", more={"num_key_value_heads": 6, "partial_rotary_factor": 0.5}, without=("head_dim",)),
    Family("phi3", "phi3", more={"pad_token_id": 0}, without=("head_dim",)),
    Family("qwen2", "qwen2"),
    Family(
        "qwen2-moe with a window",
        "qwen2_moe",
        # Longer than the prompts of the parity probe.
        more={
            **_EXPERTS,
            "shared_expert_intermediate_size": 32,
            "use_sliding_window": True,
            "sliding_window": 60,
            "max_window_layers": 1,
        },
        without=("head_dim",),
    ),
    Family("qwen3", "qwen3"),
    Family("qwen3-moe", "qwen3_moe", more=_EXPERTS),
    Family("mixtral", "mixtral", more={"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("gemma2 with soft caps", "gemma2", more={"sliding_window": 9, "attn_logit_softcapping": 4.0}),
    Family("gemma3", "gemma3_text", more={"sliding_window": 9}),
    Family("gpt-oss", "gpt_oss", more={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    Family(
        "gpt2",
        "gpt2",
        more={"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": CONTEXT},
        without=(
            *_HEADS_OF_EIGHT,
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ),
    ),
    Family("gpt-neox", "gpt_neox", without=("num_key_value_heads", "head_dim")),
    Family("opt", "opt", more={"ffn_dim": 64, "word_embed_proj_dim": 48, "init_std": 0.3}, without=_HEADS_OF_EIGHT),
    Family("olmo2", "olmo2", without=("head_dim",)),
    Family("granite", "granite", more={"residual_multiplier": 0.7, "logits_scaling": 0.5}, without=("head_dim",)),
    Family("cohere2", "cohere2", more={"sliding_window": 9, "logit_scale": 1.0}, without=("head_dim",)),
    Family("deepseek-v2", "deepseek_v2", more=_LATENT),
    Family("deepseek-v3", "deepseek_v3", more=_LATENT),
    Family(
        "llama4",
        "llama4_text",
        more={
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 16,
            "floor_scale": 8,
            "attn_scale": 0.3,
            "num_hidden_layers": 4,
            "interleave_moe_layer_step": 2,
        },
    ),
    Family("falcon", "falcon", "rows", {"alibi": False, "new_decoder_architecture": False}, _HEADS_OF_EIGHT),
    Family("falcon with alibi", "falcon", "rows", {"alibi": True}, _HEADS_OF_EIGHT),
    Family("bloom", "bloom", "rows", {"n_layer": 3, "n_head": 6}, _HEADS_OF_EIGHT),
    Family(
        "qwen3-next",
        "qwen3_next",
        "rows",
        {
            **_EXPERTS,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_hidden_layers": 4,
        },
    ),
    Family(
        "mamba",
        "mamba",
        "rows",
        {"state_size": 8, "num_hidden_layers": 3},
        (*_HEADS_OF_EIGHT, "num_attention_heads", "max_position_embeddings"),
    ),
)


def build(family: Family, folder: Path) -> PreTrainedModel:
    """A model of the family with random weights, saved in `folder`, as Transformers loads it from there."""
    torch.manual_seed(7)
    made = AutoModelForCausalLM.from_config(family.config())
    for name, parameter in made.named_parameters():
        if parameter.ndim == 1:
            # Biases, sinks and norms that are all alike would hide a mistake in them.
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    made.save_pretrained(folder)
    return load(folder)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(requires_grad=False)
