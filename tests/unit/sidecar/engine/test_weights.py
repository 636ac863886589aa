"""Weights come out of a folder as planned; what bitsandbytes makes of them is served, proven and small."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from sidecar.engine import linears, loader, parity, weights
from sidecar.engine.config import EngineConfig
from sidecar.engine.loader import ModelUnusableError
from sidecar.engine.precision import Machine, plan
from tests.fakes.steps import Bench, generate

pytest.importorskip("bitsandbytes")

AMX_CPU = Machine("cpu", bf16=True, fp16=True, packages=frozenset({"bitsandbytes"}))
PROMPTS = [[3, 14, 15, 92, 65], list(range(20, 60)), [7, 8]]


def test_an_8_bit_weight_is_multiplied_as_what_it_stands_for() -> None:
    torch.manual_seed(1)
    plain, x, bias = torch.randn(6, 8), torch.randn(2, 3, 8), torch.randn(6)
    largest = plain.abs().amax(1)
    int8 = torch.round(plain / largest[:, None] * 127).to(torch.int8)
    stands_for = int8.float() * largest[:, None] / 127
    assert torch.allclose(weights.UnpackedInt8(int8, largest, bias)(x), linear(x, stands_for, bias), atol=1e-5)
    assert torch.allclose(weights.UnpackedInt8(int8, largest, None)(x), linear(x, stands_for), atol=1e-5)


@pytest.mark.parametrize("precision", ["bnb_int8", "nf4"])
def test_what_bitsandbytes_makes_is_served_exactly(precision: str, engine_config: Callable[..., EngineConfig]) -> None:
    config = engine_config(precision=precision)
    stock = weights.read(Path(config.model_path), plan(precision, AMX_CPU), "cpu")
    loaded = loader.load(config)
    assert (loaded.tier.name, loaded.tier.fused, loaded.tier.steps_down) == ("packed", False, ())
    assert loaded.parity < 1e-3
    assert Bench(loaded).answers(PROMPTS) == [generate(stock, prompt)[0] for prompt in PROMPTS]
    ready = loader.report(loaded, config, loaded.capacity_tokens)
    assert (ready.precision, ready.dtype) == (precision, "float32")
    assert "saves memory" in ready.steps_down[0]


def test_fewer_bits_take_less_memory(engine_config: Callable[..., EngineConfig]) -> None:
    sizes = [loader.load(engine_config(precision=name)).weights_bytes for name in ("fp32", "bnb_int8", "nf4")]
    assert sizes == sorted(sizes, reverse=True)
    linear_weights = 3 * (48 * 48 * 2 + 48 * 16 * 2 + 48 * 96 * 3)
    # fp32 keeps the output layer twice, beside the embedding that it shares; the scales and norms are small.
    assert abs(sizes[0] - (linear_weights + 160 * 48 * 2) * 4) < 3000
    assert abs(sizes[2] - (linear_weights / 2 + 160 * 48 * 4)) < linear_weights / 64 * 4 + 3000


def test_weights_that_come_quantised_are_served_as_they_are(
    tiny_folder: Path, tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    told = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    stock = LlamaForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, quantization_config=told, device_map={"": "cpu"}
    )
    stock.save_pretrained(tmp_path)
    for module in stock.modules():
        # Its kernel for CPUs with AVX-512 BF16 fails on layers as small as these.
        module.support_avx512bf16_for_cpu = False
    assert weights.method(tmp_path) == "bitsandbytes"
    loaded = loader.load(engine_config(model_path=str(tmp_path)))
    assert loaded.precision == "bitsandbytes"
    assert Bench(loaded).answers(PROMPTS) == [generate(stock.eval(), prompt)[0] for prompt in PROMPTS]
    with pytest.raises(ModelUnusableError, match="cannot be made int8"):
        loader.load(engine_config(model_path=str(tmp_path), precision="int8"))


def in_8_bit_floats(folder: Path, block: int = 16) -> None:
    """Save a folder's linear weights as checkpoints in fp8 have them: a scale for each block."""
    file = folder / "model.safetensors"
    made: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        made[name] = weight
        if name.endswith("_proj.weight"):
            blocks = weight.view(weight.shape[0] // block, block, weight.shape[1] // block, block)
            scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            made[name] = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(weight.shape)
            made[name.replace("weight", "weight_scale_inv")] = scale
    save_file(made, file, metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    told["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
    }
    (folder / "config.json").write_text(json.dumps(told))


def test_8_bit_floats_are_made_plain_and_run_fast(
    tiny_folder: Path, tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    in_8_bit_floats(folder)
    loaded = loader.load(engine_config(model_path=str(folder)))
    assert (loaded.precision, loaded.tier.name, loaded.tier.fused) == ("fp32", "packed", True)
    assert "fp8 run as fp32" in loaded.notes[0]
    exact = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    rounded = weights.read(folder, plan("fp32", AMX_CPU, "fp8"), "cpu")
    one, other = (model.model.layers[0].mlp.up_proj.weight for model in (exact, rounded))
    assert 0.001 < (one - other).norm() / one.norm() < 0.05
    assert Bench(loaded).answers(PROMPTS) == [generate(rounded, prompt)[0] for prompt in PROMPTS]
    assert loader.load(engine_config(model_path=str(folder), precision="int8")).precision == "int8"


@pytest.mark.parametrize(("precision", "difference"), [("bf16", 1.0), ("fp16", 0.1)])
def test_16_bits_are_rounded_weights_of_a_proven_tier(
    monkeypatch: pytest.MonkeyPatch, engine_config: Callable[..., EngineConfig], precision: str, difference: float
) -> None:
    monkeypatch.setattr(weights, "look", lambda _: AMX_CPU)
    loaded = loader.load(engine_config(precision=precision))
    assert (loaded.precision, loaded.tier.fused, loaded.notes) == (precision, True, ())
    assert loaded.parity < 1e-3
    exact = loader.load(engine_config())
    assert loaded.weights_bytes < exact.weights_bytes
    folder = Path(engine_config().model_path)
    wanted = parity.references(weights.read(folder, plan("fp32", AMX_CPU), "cpu"), folder)
    assert 1e-3 < parity.check(loaded.runner.forward, wanted, float("inf")) < difference


def test_16_bits_without_instructions_are_published_as_what_they_are(
    monkeypatch: pytest.MonkeyPatch, engine_config: Callable[..., EngineConfig]
) -> None:
    monkeypatch.setattr(weights, "look", lambda _: Machine("cpu", bf16=False, fp16=False, packages=frozenset()))
    config = engine_config(precision="bf16")
    ready = loader.report(loader.load(config), config, 0)
    assert ready.precision == "fp32"
    assert "bf16 runs as fp32" in ready.steps_down[0]


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({}, None),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"quantization_config": {"bits": 4}}, "unknown"),
    ],
)
def test_a_config_says_how_weights_are_quantised(tmp_path: Path, told: dict[str, object], wanted: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert weights.method(tmp_path) == wanted


def test_a_folder_without_a_config_is_left_to_the_reader(tmp_path: Path) -> None:
    assert weights.method(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert weights.method(tmp_path) is None


def test_a_checkpoint_that_needs_what_is_missing_is_refused(
    tiny_folder: Path, tmp_path: Path, engine_config: Callable[..., EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    told = json.loads((folder / "config.json").read_text())
    told["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(told))
    monkeypatch.setattr(weights, "look", lambda _: AMX_CPU)
    with pytest.raises(ModelUnusableError, match="pip install gptqmodel optimum"):
        loader.load(engine_config(model_path=str(folder)))


def test_this_machine_can_be_looked_at() -> None:
    found = weights.look("cpu")
    assert found.device == "cpu"
    assert "bitsandbytes" in found.packages


def test_a_size_counts_the_scales_of_4_bits(tiny_folder: Path) -> None:
    model = weights.read(tiny_folder, plan("nf4", AMX_CPU), "cpu")
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert linears.size(model) > parameters + 3 * (48 * 48 * 2 + 48 * 16 * 2 + 48 * 96 * 3) // 64 * 4
