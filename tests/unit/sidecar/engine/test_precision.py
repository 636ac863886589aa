"""What is asked for, what the folder brings and what the machine can do give one plan, or a refusal that says why."""

from dataclasses import replace

import pytest

from sidecar.engine.precision import PACKAGES, Machine, Plan, PrecisionError, plan

PLAIN_CPU = Machine("cpu", bf16=False, fp16=False, packages=PACKAGES)
AMX_CPU = Machine("cpu", bf16=True, fp16=True, packages=PACKAGES)
BARE_CPU = Machine("cpu", bf16=False, fp16=False, packages=frozenset())
GPU = Machine("cuda", bf16=True, fp16=True, packages=PACKAGES)
OLD_GPU = Machine("cuda", bf16=False, fp16=True, packages=PACKAGES)


@pytest.mark.parametrize(
    ("precision", "machine", "wanted"),
    [
        ("fp32", BARE_CPU, Plan("fp32")),
        ("fp32", GPU, Plan("fp32", pack=None)),
        ("int8", BARE_CPU, Plan("int8", pack="int8")),
        # Proven in fp32, rounded afterwards.
        ("bf16", AMX_CPU, Plan("bf16", pack="bf16")),
        ("fp16", AMX_CPU, Plan("fp16", pack="fp16")),
        ("bf16", GPU, Plan("bf16", dtype="bfloat16", pack=None, rounding="bfloat16")),
        ("fp16", OLD_GPU, Plan("fp16", dtype="float16", pack=None, rounding="float16")),
        ("nf4", GPU, Plan("nf4", dtype="bfloat16", quantise="nf4", pack=None, rounding="bfloat16")),
        ("bnb_int8", OLD_GPU, Plan("bnb_int8", dtype="float16", quantise="bnb_int8", pack=None, rounding="float16")),
    ],
)
def test_what_a_machine_does_well_runs_as_it_was_asked_for(precision: str, machine: Machine, wanted: Plan) -> None:
    assert plan(precision, machine) == wanted


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_without_instructions_for_them_run_as_fp32_and_say_so(precision: str) -> None:
    found = plan(precision, PLAIN_CPU)
    assert (found.precision, found.dtype, found.pack) == ("fp32", "float32", "fp32")
    assert found.notes == (
        f"precision {precision} runs as fp32, which is faster: this CPU has no {precision} instructions",
    )
    assert plan(precision, AMX_CPU).notes == ()


def test_int8_is_refused_where_nothing_multiplies_it() -> None:
    with pytest.raises(PrecisionError, match=r"needs FBGEMM.*take fp32"):
        plan("int8", replace(BARE_CPU, int8=False))
    with pytest.raises(PrecisionError, match="take bnb_int8"):
        plan("int8", GPU)


def test_an_old_gpu_has_no_bf16() -> None:
    found = plan("bf16", OLD_GPU)
    assert (found.precision, found.pack) == ("fp32", None)
    assert "this CUDA has no bf16" in found.notes[0]


@pytest.mark.parametrize("precision", ["bnb_int8", "nf4"])
def test_bitsandbytes_on_a_cpu_says_that_it_is_slow(precision: str) -> None:
    found = plan(precision, PLAIN_CPU)
    assert (found.precision, found.quantise, found.dtype, found.frugal) == (precision, precision, "float32", True)
    assert "int8 is the fast one" in found.notes[0]
    with pytest.raises(PrecisionError, match="pip install bitsandbytes, or take int8"):
        plan(precision, BARE_CPU)


def test_products_of_4_bits_are_rounded_where_bitsandbytes_has_a_kernel_for_them() -> None:
    assert plan("nf4", PLAIN_CPU).rounding == "float32"
    assert plan("nf4", AMX_CPU).rounding == "bfloat16"
    assert plan("bnb_int8", AMX_CPU).rounding == "float32"


def test_int8_is_for_cpus() -> None:
    with pytest.raises(PrecisionError, match="take bnb_int8"):
        plan("int8", GPU)


def test_nothing_is_kept_twice_where_memory_counts() -> None:
    assert not any(plan(precision, AMX_CPU).frugal for precision in ("fp32", "bf16", "fp16", "int8"))
    assert plan("fp32", PLAIN_CPU, "gptq").frugal


@pytest.mark.parametrize(
    ("method", "rounding"), [("bitsandbytes", "float32"), ("gptq", "bfloat16"), ("a new one", "bfloat16")]
)
def test_weights_that_come_quantised_stay_so(method: str, rounding: str) -> None:
    assert plan("fp32", PLAIN_CPU, method) == Plan(method, rounding=rounding)
    assert plan("bf16", GPU, method) == Plan(method, dtype="bfloat16", pack=None, rounding="bfloat16")


def test_16_bits_around_quantised_weights_are_fp32_too_where_they_must() -> None:
    found = plan("bf16", PLAIN_CPU, "bitsandbytes")
    assert (found.precision, found.dtype) == ("bitsandbytes", "float32")
    assert "bf16 runs as fp32" in found.notes[0]


@pytest.mark.parametrize("precision", ["int8", "bnb_int8", "nf4"])
def test_quantised_weights_are_not_quantised_again(precision: str) -> None:
    with pytest.raises(PrecisionError, match=rf"quantised \(awq\) and cannot be made {precision}: take precision fp32"):
        plan(precision, PLAIN_CPU, "awq")


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("bitsandbytes", "pip install bitsandbytes"),
        ("gptq", "pip install gptqmodel optimum"),
        ("awq", "pip install gptqmodel"),
        ("compressed-tensors", "pip install compressed-tensors"),
    ],
)
def test_what_is_missing_is_named(method: str, command: str) -> None:
    with pytest.raises(PrecisionError, match=command):
        plan("fp32", BARE_CPU, method)


def test_only_the_missing_of_several_packages_is_named() -> None:
    machine = Machine("cpu", bf16=False, fp16=False, packages=frozenset({"gptqmodel"}))
    with pytest.raises(PrecisionError, match=r"pip install optimum$"):
        plan("fp32", machine, "gptq")


def test_what_needs_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(PrecisionError, match="eetq need a GPU"):
        plan("fp32", PLAIN_CPU, "eetq")
    assert plan("bf16", GPU, "eetq").precision == "eetq"


def test_8_bit_floats_run_as_plain_ones_on_a_cpu() -> None:
    found = plan("fp32", BARE_CPU, "fp8")
    assert (found.precision, found.rounding) == ("fp32", "float32")
    assert found.notes == ("weights quantised with fp8 run as fp32: a CPU has no instructions for them",)
    assert plan("int8", BARE_CPU, "mxfp4").pack == "int8"
    assert plan("bf16", GPU, "fp8").precision == "fp8"
    with pytest.raises(PrecisionError, match="cannot be made nf4"):
        plan("nf4", PLAIN_CPU, "fp8")
