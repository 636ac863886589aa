"""Decides in which precision a model runs: what was asked for, what its folder brings, and what this machine does well.

Pure: `weights` looks at the machine and reads. What the machine does badly is computed in fp32 and said so; what it
cannot do is refused, with what to install or choose.

| setting | weights | computed in |
|---|---|---|
| fp32 | fp32, or as the folder has them quantised | fp32 |
| bf16, fp16 | 16 bits, or as the folder has them quantised | 16 bits, on a CPU the products only |
| int8 | 8 bits, a scale a row | integers, activations with a scale a token; CPUs only |
| bnb_int8 | 8 bits, a scale a row, by bitsandbytes | CUDA: integers. CPU: fp32 |
| nf4 | 4 bits, a scale for 64, by bitsandbytes | fp32 or 16 bits |
"""

from dataclasses import dataclass, replace
from typing import Final

DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# What bitsandbytes makes of weights while they are read.
BITSANDBYTES: Final = ("bnb_int8", "nf4")
# Packages that Transformers wants for checkpoints that come quantised (its quantizers/), by `quant_method`. One that is
# not here is tried: Transformers says itself what it lacks.
_NEEDED: Final = {
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "torchao": ("torchao",),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "auto-round": ("auto-round",),
}
PACKAGES: Final = frozenset(package for packages in _NEEDED.values() for package in packages)
_GPU_ONLY: Final = frozenset({"eetq", "fbgemm_fp8", "fouroversix", "fp_quant", "higgs", "nvfp4", "spqr", "vptq"})
# Of these Transformers makes plain weights on a CPU.
_UNPACKED_ON_CPU: Final = frozenset({"fp8", "mxfp4", "mxfp8"})


class PrecisionError(Exception):
    """The model cannot run in what was asked for; the message says why and what to install or choose."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a decision depends on. `bf16`, `fp16`: whether the device multiplies them with instructions of its own.

    `packages`: those of PACKAGES that are installed. `int8`: whether this PyTorch has FBGEMM, which is for x86.
    """

    device: str
    bf16: bool
    fp16: bool
    packages: frozenset[str]
    int8: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is read and run.

    `precision`: what is published. `dtype`: torch's name of what is read and computed in. `quantise`: one of
    BITSANDBYTES to make of the weights on the way, or None. `pack`: the precision that linear layers are packed in once
    the tier is proven, None for as they came. `rounding`: the narrowest dtype of a product until then. `notes`: what is
    not as it was asked for, a line each.
    """

    precision: str
    dtype: str = "float32"
    quantise: str | None = None
    pack: str | None = "fp32"
    rounding: str = "float32"
    notes: tuple[str, ...] = ()

    @property
    def frugal(self) -> bool:
        """Whether memory counts for more than time: no weight is kept twice."""
        return self.precision not in DTYPES and self.pack != "int8"


def plan(precision: str, machine: Machine, method: str | None = None) -> Plan:
    """The plan for a `precision` of the settings. `method`: how the folder's weights are quantised, None if not.

    Raises PrecisionError.
    """
    if method is not None:
        return _as_it_came(precision, machine, method)
    if precision in BITSANDBYTES:
        return _bitsandbytes(precision, machine)
    if precision == "int8":
        if machine.device != "cpu":
            raise PrecisionError("precision int8 is for CPUs: take bnb_int8")
        if not machine.int8:
            raise PrecisionError("precision int8 needs FBGEMM, which this PyTorch has not (it is for x86): take fp32")
        return Plan("int8", pack="int8")
    return _plain(precision, machine)


def _plain(precision: str, machine: Machine) -> Plan:
    """Weights that are what they are computed in."""
    if (precision == "bf16" and not machine.bf16) or (precision == "fp16" and not machine.fp16):
        lacks = f"this {machine.device.upper()} has no {precision} instructions"
        note = f"precision {precision} runs as fp32, which is faster: {lacks}"
        return replace(_plain("fp32", machine), notes=(note,))
    if machine.device == "cpu":
        # Proven in fp32: what 16 bits round away is more than a small mistake in attention would change.
        return Plan(precision, pack=precision)
    return Plan(precision, DTYPES[precision], pack=None, rounding=DTYPES[precision])


def _bitsandbytes(precision: str, machine: Machine) -> Plan:
    if "bitsandbytes" not in machine.packages:
        raise PrecisionError(f"precision {precision} needs bitsandbytes: pip install bitsandbytes, or take int8")
    made = _around(precision, machine)
    if machine.device != "cpu":
        # Half the time of fp32, and what bitsandbytes' kernels are made for.
        dtype = "bfloat16" if machine.bf16 else "float16"
        return replace(made, dtype=dtype, rounding=dtype, quantise=precision, pack=None)
    slow = f"precision {precision} saves memory, not time, on a CPU: weights are unpacked for every product"
    return replace(made, quantise=precision, notes=(f"{slow}; int8 is the fast one",))


def _as_it_came(precision: str, machine: Machine, method: str) -> Plan:
    """Weights that were quantised before; `precision` is then what everything around them is computed in."""
    if machine.device == "cpu" and method in _UNPACKED_ON_CPU and precision not in BITSANDBYTES:
        around = plan(precision, machine)
        note = f"weights quantised with {method} run as {around.precision}: a CPU has no instructions for them"
        return replace(around, notes=(*around.notes, note))
    if precision not in DTYPES:
        raise PrecisionError(
            f"the weights come quantised ({method}) and cannot be made {precision}: take precision fp32, "
            "or the model's own weights"
        )
    if machine.device == "cpu" and method in _GPU_ONLY:
        raise PrecisionError(f"weights quantised with {method} need a GPU: take the model's own weights, or GGUF ones")
    missing = [package for package in _NEEDED.get(method, ()) if package not in machine.packages]
    if missing:
        raise PrecisionError(f"weights quantised with {method} need what is missing: pip install {' '.join(missing)}")
    around = _plain(precision, machine)
    return replace(_around(method, machine), dtype=around.dtype, pack=around.pack, notes=around.notes)


def _around(name: str, machine: Machine) -> Plan:
    """Quantised weights, with fp32 around them."""
    # Kernels of these round to 16 bits, whatever they are given: bitsandbytes' for 4 bits where a CPU has bf16
    # (its backends/cpu/ops.py), those of the others always.
    exact = name in {"bnb_int8", "nf4", "bitsandbytes", "compressed-tensors", "torchao", "hqq", "quanto"}
    narrow = not exact or (machine.bf16 and name != "bnb_int8") or machine.device != "cpu"
    return Plan(name, rounding="bfloat16" if narrow else "float32")
