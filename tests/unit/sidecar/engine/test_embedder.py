"""An encoder's vectors: those of its own states, pooled as the folder says; and what is refused while it is loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, T5Config, T5Model

from sidecar.engine import embedder
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.config import EngineConfig
from sidecar.engine.embedder import EncoderUnusableError
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit

VOCABULARY = 60
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [5, 6, 7]]
MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def build(folder: Path, **told: Any) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        **{"max_position_embeddings": 64, "initializer_range": 0.5, **told},
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(tmp_path / "model")


def engine_config(folder: Path, **told: Any) -> EngineConfig:
    return EngineConfig(
        **{
            "model_path": str(folder),
            "slots_path": "",
            "precision": "fp32",
            "device": "cpu",
            "max_sequences": 4,
            "step_token_budget": 64,
            "max_context": None,
            "kv_tokens": None,
            "threads": None,
            "embeds": True,
            **told,
        }
    )


def whole(prompts: list[list[int]]) -> tuple[Chunk, ...]:
    """A chunk for each prompt, with all of it."""
    sampling = Sampling(temperature=0)
    submits = [Submit("req", at, prompt, 0, sampling, []) for at, prompt in enumerate(prompts)]
    return tuple(Chunk(Sequence(submit, at, at), 0, len(submit.prompt_ids)) for at, submit in enumerate(submits))


def pool(folder: Path, mode: str, modules: object = MODULES) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))


def states(folder: Path, prompt: list[int]) -> torch.Tensor:
    """`[tokens, size]`, of the stock model."""
    with torch.inference_mode():
        found: torch.Tensor = BertModel.from_pretrained(folder)(torch.tensor([prompt])).last_hidden_state[0]
    return found


def reason(folder: Path, **told: Any) -> str:
    with pytest.raises(EncoderUnusableError) as caught:
        embedder.load(engine_config(folder, **told))
    return str(caught.value)


def test_vectors_are_the_mean_of_the_stock_models_states_and_of_length_1(folder: Path) -> None:
    loaded = embedder.load(engine_config(folder))
    found = loaded.runner.embed(PROMPTS)
    wanted = torch.stack([normalize(states(folder, prompt).mean(0), dim=0) for prompt in PROMPTS])
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-5
    assert (loaded.size, loaded.max_context, loaded.vocab_size) == (32, 64, VOCABULARY)
    assert loaded.parity <= embedder.TOLERANCE


def test_the_first_tokens_state_where_the_folder_says_so(folder: Path) -> None:
    pool(folder, "cls_token")
    found = embedder.load(engine_config(folder)).runner.embed(PROMPTS)
    wanted = torch.stack([normalize(states(folder, prompt)[0], dim=0) for prompt in PROMPTS])
    assert (found - wanted).abs().max() < 1e-5


def test_vectors_have_length_1_also_where_the_folder_does_not_normalise(folder: Path) -> None:
    pool(folder, "mean_tokens")
    found = embedder.load(engine_config(folder)).runner.embed(PROMPTS)
    assert torch.allclose(found.norm(dim=-1), torch.ones(len(PROMPTS)))


def test_prompts_of_unlike_lengths_are_not_padded_to_one_another() -> None:
    prompts = [[1] * 40, [1], [1] * 38, [1, 1]]
    order = [1, 3, 2, 0]
    assert embedder._groups(order, prompts) == [[1, 3], [2, 0]]


def test_a_step_gives_each_chunk_its_vector_as_fp32(folder: Path) -> None:
    runner = embedder.load(engine_config(folder)).runner
    chunks = whole(PROMPTS)
    outcomes = runner.run(Batch((), chunks)).outcomes
    found = np.stack([np.frombuffer(outcome.embedding, dtype="<f4") for outcome in outcomes])
    assert [outcome.chunk for outcome in outcomes] == list(chunks)
    assert not any(outcome.failed for outcome in outcomes)
    assert np.abs(found - runner.embed(PROMPTS).numpy()).max() < 1e-6


def test_a_vector_that_is_no_number_fails_alone(folder: Path) -> None:
    runner = embedder.load(engine_config(folder)).runner
    with torch.no_grad():
        runner.model.embeddings.word_embeddings.weight[9] = torch.nan
    outcomes = runner.run(Batch((), whole(PROMPTS))).outcomes
    assert [outcome.failed for outcome in outcomes] == [False, True, False, False]


def test_int8_vectors_are_near(folder: Path) -> None:
    plain = embedder.load(engine_config(folder)).runner.embed(PROMPTS)
    loaded = embedder.load(engine_config(folder, precision="int8"))
    near = (loaded.runner.embed(PROMPTS) * plain).sum(-1)
    assert float(near.min()) > 0.95
    assert loaded.parity > 0


def test_a_model_with_few_positions_is_loaded(tmp_path: Path) -> None:
    loaded = embedder.load(engine_config(build(tmp_path / "short", max_position_embeddings=16)))
    assert loaded.max_context == 16
    assert loaded.runner.embed([[1] * 16]).shape == (1, 32)


@pytest.mark.parametrize(
    ("model_type", "made_for", "limit"),
    [("bert", None, 514), ("bert", 256, 256), ("roberta", None, 512), ("mpnet", 600, 512), ("bert", 0, 514)],
)
def test_how_long_a_text_may_be(tmp_path: Path, model_type: str, made_for: int | None, limit: int) -> None:
    config = BertConfig(max_position_embeddings=514, pad_token_id=1)
    config.model_type = model_type
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": made_for}))
    assert embedder.max_tokens(tmp_path, config) == limit


def test_a_longer_context_than_the_models_is_refused(folder: Path) -> None:
    assert "takes 64 tokens" in reason(folder, max_context=65)
    assert embedder.load(engine_config(folder, max_context=8)).max_context == 8


@pytest.mark.parametrize(
    "modules",
    [{"a": 1}, ["Pooling"], [None], [{**MODULES[1], "path": "../other"}], [{**MODULES[1], "path": "/etc"}]],
)
def test_modules_that_cannot_be_followed_are_refused(folder: Path, modules: object) -> None:
    pool(folder, "mean_tokens", modules)
    assert "modules.json" in reason(folder)


@pytest.mark.parametrize("mode", ["max_tokens", "lasttoken"])
def test_other_ways_of_pooling_are_refused(folder: Path, mode: str) -> None:
    pool(folder, mode)
    assert mode in reason(folder)


def test_an_unknown_module_is_refused(folder: Path) -> None:
    pool(folder, "mean_tokens", [*MODULES, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    assert "Dense" in reason(folder)


def test_a_file_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "modules.json").write_text("{")
    assert "is not JSON" in reason(folder)


def test_models_that_generate_are_refused(tmp_path: Path) -> None:
    t5 = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(t5).save_pretrained(tmp_path / "t5")
    assert "generates text" in reason(tmp_path / "t5")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(tmp_path / "llama")
    config = json.loads((tmp_path / "llama/config.json").read_text())
    (tmp_path / "llama/config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    assert "generates text" in reason(tmp_path / "llama")


def test_what_the_models_own_code_raises_is_told_as_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such shape")

    monkeypatch.setattr(BertModel, "forward", broken)
    assert "no such shape" in reason(folder)


def test_weights_that_cannot_be_read_are_told(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    assert "cannot load" in reason(folder)


def test_a_batch_that_differs_from_its_parts_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = BertModel.forward

    def unmasked(self: BertModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Padding is seen as if it were text."""
        return stock(self, input_ids=input_ids)

    monkeypatch.setattr(BertModel, "forward", unmasked)
    assert "batched, vectors differ" in reason(folder)
