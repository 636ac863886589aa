"""What a chat template tells of a model's ways, and what the settings say instead."""

import pytest

from sidecar.protocol.speech.dialect import Dialect, ReasoningFormat, ToolFormat, find_dialect

QWEN3 = "{%- if '</think>' in content %}{{- '<tool_call>' }}{% for tool in tools %}{% endfor %}"
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
    assert find_dialect(template, reasoning, "none", knows_tools=True) == Dialect(thinks)


@pytest.mark.parametrize(
    ("template", "tools", "knows", "found"),
    [
        (QWEN3, "auto", True, "hermes"),
        (CHATML, "auto", True, "hermes"),
        ("{{- '<|start_header_id|>' }}{%- if builtin_tools %}{{ '<|python_tag|>' }}", "auto", True, "llama3"),
        ("{{- '<|start_header_id|>' }}", "auto", True, "llama3"),
        ("{{- '[TOOL_CALLS]' }}", "auto", True, "mistral"),
        ("{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'}}", "auto", True, "deepseek"),
        ("{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}", "auto", True, "phi"),
        # Tools are described to it, and Hermes's form with them.
        ("{{- '<|start_header_id|>' }}", "auto", False, "hermes"),
        (QWEN3, "none", True, "none"),
        (QWEN3, "mistral", True, "mistral"),
    ],
)
def test_calls_are_written_in_the_template_s_way(
    template: str, tools: ToolFormat, knows: bool, found: ToolFormat
) -> None:
    assert find_dialect(template, "none", tools, knows_tools=knows).tools == found
