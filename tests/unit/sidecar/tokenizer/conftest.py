"""A small byte-level tokenizer with a chat template, trained here, in a folder as a model has it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sidecar.tokenizer.model_tokenizer import ModelTokenizer
from tests.fakes.tiny import train

TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|start|>system\nBe kind<|end|>\n' }}{% endif %}"
    "{% if message['content'] == 'no' %}{{ raise_exception('say yes') }}{% endif %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
CORPUS = ["the cat sat on the mat", "the hat of the cat, the rat", "Grüße aus Köln — 你好 🙂", "end start system user"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train(CORPUS)


def write(folder: Path, tokenizer: Tokenizer, template: str | None = TEMPLATE) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | ({"chat_template": template} if template else {}))
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 1}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write(tmp_path_factory.mktemp("tokenizer") / "model", tokenizer)


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The same without a chat template."""
    return write(tmp_path_factory.mktemp("tokenizer") / "plain", tokenizer, None)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Callable[[str], ModelTokenizer]:
    """A model with a template; each is loaded once."""
    models: dict[str, ModelTokenizer] = {}

    def make(template: str) -> ModelTokenizer:
        if template not in models:
            model = tmp_path_factory.mktemp("template")
            for file in folder.iterdir():
                (model / file.name).write_bytes(file.read_bytes())
            config = json.loads((folder / "tokenizer_config.json").read_text())
            (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
            models[template] = ModelTokenizer(model)
        return models[template]

    return make
