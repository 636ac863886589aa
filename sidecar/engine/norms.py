"""RMS norms as PyTorch has them, in the place of a model's own where both compute the same."""

import torch
from torch import nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel
from typing_extensions import override


class NativeNorm(nn.Module):
    """PyTorch's RMS norm: `x / sqrt(mean(x²) + eps) × weight`."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


def use_native_norms(model: PreTrainedModel) -> None:
    """Replace the norms that agree with PyTorch's; those with a formula of their own (a unit offset, say) stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            weight, eps = getattr(child, "weight", None), getattr(child, "variance_epsilon", None)
            if type(child).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and isinstance(eps, float):
                native = NativeNorm(weight, eps)
                if _agree(child, native, weight):
                    setattr(module, name, native)


@torch.inference_mode()
def _agree(one: nn.Module, other: nn.Module, weight: torch.Tensor) -> bool:
    x = torch.linspace(-3, 3, 2 * weight.shape[-1], device=weight.device).view(2, -1).to(weight.dtype)
    return bool(torch.allclose(one(x), other(x), rtol=1e-5, atol=1e-6))
