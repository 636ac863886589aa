"""The bytes of every token, joined, are the bytes of the text."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sidecar.tokenizer.spelling import Spelling, byte_of_characters


def byte_level() -> tokenizers.Tokenizer:
    vocabulary = {character: place for place, character in enumerate(sorted(byte_of_characters()))}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made


@pytest.mark.parametrize("text", ["plain", "naïve — 日本 🎉", "\x00\n\t", "<|end|> after"])
def test_byte_level_tokens_spell_the_text(text: str) -> None:
    tokenizer = byte_level()
    spelling = Spelling(tokenizer)
    assert b"".join(map(spelling.bytes_of, tokenizer.encode(text).ids)) == text.encode()


def test_a_space_that_the_decoder_drops_at_the_beginning_is_not_spelt_there() -> None:
    made = tokenizers.Tokenizer(models.BPE(vocab={"▁the": 0, "x": 1, "▁▁": 2}, merges=[]))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    spelling = Spelling(made)
    assert [spelling.bytes_of(token, begins=True) for token in range(3)] == [b"the", b"x", b" "]
    assert [spelling.bytes_of(token) for token in range(3)] == [b" the", b"x", b"  "]
    # Byte-level decoders drop nothing.
    plain = byte_level()
    (space,) = plain.encode(" ").ids
    assert Spelling(plain).bytes_of(space, begins=True) == b" "


def test_every_byte_has_one_character() -> None:
    assert sorted(byte_of_characters().values()) == list(range(256))


def test_byte_fallback_and_spaces_are_read() -> None:
    made = tokenizers.Tokenizer(models.BPE(vocab={"<0x0A>": 0, "▁the": 1, "x": 2}, merges=[]))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    spelling = Spelling(made)
    assert [spelling.bytes_of(token) for token in range(4)] == [b"\n", b" the", b"x", b""]
