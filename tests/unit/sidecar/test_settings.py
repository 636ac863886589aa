"""What the settings refuse beyond their types."""

import inspect
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from sidecar.settings import RENDERER_NAMES, TOKEN_ENDINGS, Api, load_settings
from sidecar.yamlfile import ConfigInvalidError


def write(folder: Path, names: str) -> Path:
    path = folder / "sidecar.yaml"
    path.write_text(f"model: {{id: m, source: m}}\napi: {{chat_template_kwargs: {names}}}\n")
    return path


def test_variables_of_chat_templates_can_be_allowed(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "[date_string, thinking]"), {}).api.chat_template_kwargs == (
        "date_string",
        "thinking",
    )
    assert load_settings(write(tmp_path, "[]"), {}).api.chat_template_kwargs == ()


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "range", "a b", "_x", "''"]
)
def test_a_name_of_the_renderer_s_own_or_of_no_variable_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigInvalidError) as caught:
        load_settings(write(tmp_path, f"[thinking, {name}]"), {})
    assert len(caught.value.problems) == 1


def test_the_refusal_says_the_setting_and_the_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalidError, match=r"api\.chat_template_kwargs: 'documents' is the renderer's own"):
        load_settings(write(tmp_path, "[documents]"), {})


def test_all_names_of_the_renderer_are_known() -> None:
    taken = {
        name
        for function in (PreTrainedTokenizerBase.apply_chat_template, chat_template_utils.render_jinja_template)
        for name in inspect.signature(function).parameters
    }
    environment = chat_template_utils._compile_jinja_template("").environment
    assert taken | set(environment.globals) | {"messages"} <= RENDERER_NAMES
    assert all(name.endswith(TOKEN_ENDINGS) for name in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    assert not RENDERER_NAMES & set(Api().chat_template_kwargs)
