"""What the engine does on a GPU itself: graphs, memory, precisions, and faults."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, Phi3Config

from sidecar.engine import assembly, loader, weights
from sidecar.engine.config import EngineConfig
from sidecar.engine.graphs import GraphedNetwork
from sidecar.engine.loader import Loaded, ModelUnusableError
from sidecar.engine.memory import available_bytes
from sidecar.engine.paged_cache import PagedCache
from sidecar.wire.frames import Sampling
from tests.fakes.steps import Bench, generate

PROMPTS = [[3, 14, 15, 92, 65], [35] * 3 + list(range(20, 60)), [7], list(range(100, 119))]
MANY = [[3 + (7 * n + at) % 200 for at in range(3 + 5 * n % 90)] for n in range(64)]


def graphed(loaded: Loaded) -> GraphedNetwork:
    assert isinstance(loaded.tier.network, GraphedNetwork)
    return loaded.tier.network


def test_decode_steps_are_replayed_and_give_what_they_give_without(
    engine_config: Callable[..., EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loader.load(engine_config())
    network = graphed(loaded)
    bench = Bench(loaded, budget=512, capacity=8000, slots=64)
    with_graphs = bench.answers(MANY)
    assert network.off == ""
    assert {rows for rows, _ in network._graphs} >= {64}
    recorded = len(network._graphs)
    monkeypatch.setattr(network, "off", "told so")
    plain = Bench(loaded, budget=512, capacity=8000, slots=64)
    assert plain.answers(MANY) == with_graphs
    ours, theirs = (
        [one.token for name in sorted(each.logprobs) for one in each.logprobs[name]] for each in (bench, plain)
    )
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < 1e-3
    assert len(network._graphs) == recorded


def test_a_cache_of_the_size_that_it_was_proven_with_is_recorded_anew(
    engine_config: Callable[..., EngineConfig],
) -> None:
    loaded = loader.load(engine_config(kv_tokens=1024))
    stock = AutoModelForCausalLM.from_pretrained(engine_config().model_path, dtype=torch.float32).to("cuda")
    assert Bench(loaded, budget=512, capacity=1024).answers(PROMPTS) == [generate(stock, p)[0] for p in PROMPTS]
    assert graphed(loaded).off == ""


def test_the_cache_takes_half_of_what_is_free(engine_config: Callable[..., EngineConfig]) -> None:
    free = available_bytes("cuda")
    loaded = loader.load(engine_config(kv_tokens=None, max_sequences=1024))
    cache = loaded.runner.forward.store
    assert isinstance(cache, PagedCache)
    # As many as all sequences may have: a tiny model needs less than there is.
    assert loaded.capacity_tokens == min(
        1024 * loaded.max_context, int(free * loader.KV_MEMORY_SHARE) // cache.bytes_per_token
    )
    taken = free - available_bytes("cuda")
    wanted = cache.blocks * cache.block_tokens * cache.bytes_per_token
    assert wanted <= taken < wanted * 1.2 + (512 << 20)


def test_f4_what_does_not_fit_is_refused_at_the_start(engine_config: Callable[..., EngineConfig]) -> None:
    too_many = available_bytes("cuda") // 100
    with pytest.raises(ModelUnusableError, match=r"the GPU's memory does not hold .* set engine\.kv_tokens"):
        assembly.generator(
            engine_config(kv_tokens=too_many, max_sequences=1024, max_context=512, prefix_tokens=too_many)
        )
    torch.cuda.empty_cache()
    assert loader.load(engine_config()).tier.name == "packed"


def test_f4_a_step_that_runs_out_of_memory_harms_no_later_one(engine_config: Callable[..., EngineConfig]) -> None:
    loaded = loader.load(engine_config())
    wanted = Bench(loaded, budget=512).answers(PROMPTS)
    logits = loaded.runner.forward.logits

    def greedy(_: object) -> torch.Tensor:
        return torch.empty(1 << 50, device="cuda")

    loaded.runner.forward.logits = greedy  # type: ignore[assignment,method-assign]  # that is the fault
    # Not what a lost GPU raises: that ends the engine.
    with pytest.raises(torch.OutOfMemoryError):
        Bench(loaded, budget=512).answers(PROMPTS)
    loaded.runner.forward.logits = logits  # type: ignore[method-assign]  # as above
    assert Bench(loader.load(engine_config()), budget=512).answers(PROMPTS) == wanted


def bitsandbytes(name: str) -> Any:
    missing = "bitsandbytes" not in weights.look("cuda").packages
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="needs bitsandbytes"))


@pytest.mark.parametrize("precision", ["bf16", "fp16", bitsandbytes("bnb_int8"), bitsandbytes("nf4")])
def test_every_precision_loads_and_answers(engine_config: Callable[..., EngineConfig], precision: str) -> None:
    loaded = loader.load(engine_config(precision=precision))
    assert (loaded.precision, loaded.tier.name, loaded.tier.steps_down) == (precision, "packed", ())
    bench = Bench(loaded, budget=512, capacity=8000, slots=64)
    answers = bench.answers(MANY)
    assert len({token for answer in answers for token in answer}) > 20
    # The same once more: nothing on the way is left to chance.
    assert Bench(loaded, budget=512, capacity=8000, slots=64).answers(MANY) == answers


def test_int8_of_a_cpu_is_refused(engine_config: Callable[..., EngineConfig]) -> None:
    with pytest.raises(ModelUnusableError, match="take bnb_int8"):
        loader.load(engine_config(precision="int8"))


def test_a_seed_gives_the_same_text_alone_and_in_company(engine_config: Callable[..., EngineConfig]) -> None:
    loaded = loader.load(engine_config())
    how = Sampling(temperature=1, seed=7)
    for sampling in (how, replace(how, top_p=0.9), replace(how, top_k=20, min_p=0.01)):
        together = Bench(loaded, budget=512, capacity=8000, slots=64).answers(MANY, sampling)
        assert Bench(loaded, budget=512, capacity=8000, slots=64).answers(MANY, sampling) == together
        alone = [Bench(loaded, budget=512, capacity=8000).answers([prompt], sampling)[0] for prompt in MANY[:8]]
        assert alone == together[:8]


def test_a_long_context_of_longrope_is_settled_on_the_gpu(
    tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    config = Phi3Config(
        vocab_size=128, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=64,
        initializer_range=0.3, pad_token_id=0,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0]},
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    loaded = loader.load(engine_config(model_path=str(tmp_path / "model"), max_context=200))
    Bench(loaded, budget=512, capacity=2000).answers([list(range(3, 100)), [5, 6]])
    assert graphed(loaded).off == ""
