"""How far a conversion is, as it tells whoever started it. The conversion itself is run in the end-to-end tests."""

import re

import pytest

from sidecar.catalog import convert


def test_each_tensor_moves_it_on_and_comes_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(convert.told(range(8), desc="tensors")) == list(range(8))
    told = [int(percent) for percent in re.findall(r"^Progress (\d+) of 100$", capsys.readouterr().out, re.MULTILINE)]
    assert len(told) == 8
    assert told == sorted(told)
    assert (told[0] >= convert.READ, told[-1]) == (True, convert.UNPACKED)


def test_the_parts_follow_each_other() -> None:
    parts = [convert.IMPORTED, convert.TOKENIZER, convert.READ, convert.UNPACKED, convert.TAKEN]
    assert parts == sorted(set(parts))


def test_transformers_still_has_the_bar_that_is_replaced() -> None:
    from transformers import modeling_gguf_pytorch_utils  # noqa: PLC0415  # seconds

    assert hasattr(modeling_gguf_pytorch_utils, "tqdm")
