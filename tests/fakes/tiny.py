"""A tiny random LLaMA with a tokenizer and a chat template, in a folder as a model has it: soon served, and fast."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 512
_CORPUS = ["the cat sat on the mat", "the hat of the cat, the rat", "once upon a time there was a house by the sea"]
_SPECIALS = ["<|start|>", "<|end|>", "<pad>"]
_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def build(folder: Path) -> Path:
    """Make the model in `folder`, which is not there yet. No two builds differ."""
    vocabulary = _tokenizer(folder)
    llama(vocabulary, CONTEXT, bos=0, eos=1).save_pretrained(folder)
    return folder


def llama(vocabulary: int, context: int, *, bos: int, eos: int) -> LlamaForCausalLM:
    """A random LLaMA whose greedy output varies: grouped query heads, three layers, tied output. No two differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlamaForCausalLM(config)


def train(corpus: list[str]) -> Tokenizer:
    """A byte-level tokenizer with the special tokens of a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in _SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _tokenizer(folder: Path) -> int:
    """Write the tokenizer's files; gives its vocabulary's size."""
    folder.mkdir(parents=True)
    tokenizer = train(_CORPUS)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return int(tokenizer.get_vocab_size())
