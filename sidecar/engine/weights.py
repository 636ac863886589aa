"""Reads a model's weights as a `Plan` wants them: the adapters to the machine, to Transformers and to bitsandbytes."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from typing_extensions import override

from sidecar.engine.precision import PACKAGES, Machine, Plan

_LARGEST_INT8: Final = 127
# Rows and columns of what bitsandbytes' 4-bit kernel for AVX-512 BF16 takes; the columns are those of a scale.
_TILE_4BIT: Final = (32, 64)
_BITSANDBYTES_PRODUCTS: Final = "bitsandbytes.autograd._functions"
_MODULES: Final = {"optimum-quanto": "optimum.quanto"}


class UnreadableError(Exception):
    """Transformers does not make a model of the folder; the message says why."""


class UnpackedInt8(nn.Module):
    """A linear layer with bitsandbytes' 8-bit weight, in whatever `x` is in: `[..., in]` → `[..., out]`.

    bitsandbytes' own product rounds the input to 8 bits too, for integer instructions that it does not use on a CPU
    without AVX-512. The weight is unpacked there all the same, and what it gives depends on the batch.
    """

    def __init__(self, weight: torch.Tensor, largest: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` int8 `[out, in]`, `largest` fp32 `[out]`: what 127 stands for in a row."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(largest / _LARGEST_INT8, requires_grad=False)
        self.bias = bias

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = linear(x, self.weight.to(x.dtype)).mul_(self.scale)
        return out if self.bias is None else out.add_(self.bias)


def look(device: str) -> Machine:
    """What there is here, as far as a plan depends on it."""
    installed = frozenset(package for package in PACKAGES if _is_installed(package))
    if device == "cpu":
        found = torch.cpu.get_capabilities()
        bf16 = bool(found.get("amx_bf16") or found.get("avx512_bf16") or found.get("bf16"))
        fp16 = bool(found.get("amx_fp16") or found.get("avx512_fp16"))
        return Machine(device, bf16, fp16, installed, int8="fbgemm" in torch.backends.quantized.supported_engines)
    return Machine(device, torch.cuda.is_bf16_supported(including_emulation=False), fp16=True, packages=installed)


def _is_installed(package: str) -> bool:
    name = _MODULES.get(package, package.replace("-", "_"))
    parent = name.partition(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(name) is not None


def method(folder: Path) -> str | None:
    """How the weights of a folder are quantised, by the name its config has for it; None if they are not."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        # Whoever reads the model says what is wrong with it.
        return None
    told = config if isinstance(config, dict) else {}
    inner = told.get("text_config")
    found = told.get("quantization_config") or (inner if isinstance(inner, dict) else {}).get("quantization_config")
    if not isinstance(found, dict):
        return None
    if found.get("load_in_8bit") or found.get("load_in_4bit"):
        return "bitsandbytes"
    return str(found.get("quant_method", "unknown"))


def read(folder: Path, plan: Plan, device: str) -> PreTrainedModel:
    """The stock model, on its device. Raises UnreadableError."""
    quantised = plan.quantise is not None or method(folder) is not None
    # It warns at every product that it rounds to 16 bits of another kind on the way to 8.
    logging.getLogger(_BITSANDBYTES_PRODUCTS).setLevel(logging.ERROR)
    # The default of PyTorch's convolutions on a GPU is 19 bits for fp32, and a prompt in chunks gives something else.
    torch.backends.cudnn.allow_tf32 = False
    placed: dict[str, Any] = {"device_map": {"": device}} if quantised or device != "cpu" else {}
    if plan.quantise is not None:
        placed["quantization_config"] = _bitsandbytes(plan)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, plan.dtype),
            # The reference of the parity probe: the plainest there is, and every model has it.
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **placed,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as exc:
        raise UnreadableError(f"Transformers cannot load this model: {exc}") from exc
    if quantised and device == "cpu":
        _unpack_int8(model)
        _spare_4bit(model)
    return model.eval().requires_grad_(requires_grad=False)


def _bitsandbytes(plan: Plan) -> BitsAndBytesConfig:
    if plan.quantise == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, plan.dtype)
        )
    # With a threshold, a token's large values take others of the batch with them.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def _spare_4bit(model: PreTrainedModel) -> None:
    """Not each layer has the whole tiles that bitsandbytes' 4-bit kernel for AVX-512 BF16 takes; it fails on others."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            linear: Any = module
            if linear.out_features % _TILE_4BIT[0] or linear.in_features % _TILE_4BIT[1]:
                linear.support_avx512bf16_for_cpu = False


def _unpack_int8(model: PreTrainedModel) -> None:
    """See UnpackedInt8."""
    if not getattr(model, "is_loaded_in_8bit", False):
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Linear8bitLt":
                packed: Any = child
                setattr(module, name, UnpackedInt8(packed.weight.data, packed.weight.SCB, packed.bias))
