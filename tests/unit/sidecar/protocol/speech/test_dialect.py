"""What a chat template tells of a model's ways, and what the settings say instead."""

import pytest

from sidecar.protocol.speech.dialect import Dialect, ReasoningFormat, find_dialect

QWEN3 = "{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
CHATML = "{{ '<|im_start|>' + message['role'] }}"


@pytest.mark.parametrize(
    ("template", "reasoning", "thinks"),
    [
        (QWEN3, "auto", True),
        (CHATML, "auto", False),
        ("", "auto", False),
        (QWEN3, "none", False),
        (CHATML, "think", True),
    ],
)
def test_a_model_thinks_whose_template_knows_thoughts(template: str, reasoning: ReasoningFormat, thinks: bool) -> None:
    assert find_dialect(template, reasoning) == Dialect(thinks)
