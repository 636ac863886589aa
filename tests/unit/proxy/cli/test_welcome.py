"""What `tollhouse up` says at the end: everything a newcomer needs, and lines that can be copied as they are."""

import json
import shlex

from proxy.cli import welcome

URL = "http://127.0.0.1:8000/v1"
KEY = "sk-th_0123456789_secret"


def a_welcome(api_key: str | None, console: str | None = "http://127.0.0.1:1/console/") -> welcome.Welcome:
    return welcome.make(
        base_url=URL,
        model="tiny",
        api_key=api_key,
        tier="unlimited" if api_key else None,
        admin_url="http://127.0.0.1:1",
        console=console,
    )


def test_the_curl_line_is_a_whole_request() -> None:
    command, url, *options = shlex.split(a_welcome(KEY).curl)
    assert (command, url) == ("curl", f"{URL}/chat/completions")
    assert options[:2] == ["-H", f"Authorization: Bearer {KEY}"]
    assert json.loads(options[-1]) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": welcome.QUESTION}],
        "temperature": 0,
    }


def test_without_a_terminal_the_curl_line_is_one_line() -> None:
    lines = welcome.text(a_welcome(KEY), terminal=False, program="tollhouse").plain.splitlines()
    assert a_welcome(KEY).curl in [line.strip() for line in lines]


def test_on_a_terminal_the_broken_curl_line_is_the_same_command() -> None:
    shown = welcome.text(a_welcome(KEY), terminal=True, program="tollhouse").plain
    block = shown[shown.index("curl ") :].split("\n\n")[0]
    assert "\\\n" in block
    assert shlex.split(block.replace("\\\n", " ")) == shlex.split(a_welcome(KEY).curl)


def test_the_first_time_has_the_key_and_the_exports() -> None:
    shown = welcome.text(a_welcome(KEY), terminal=True, program="tollhouse").plain
    assert f"export OPENAI_BASE_URL={URL}\n" in shown
    assert f"export OPENAI_API_KEY={KEY}\n" in shown
    assert "shown this once" in shown


def test_later_starts_say_how_to_get_another_key() -> None:
    shown = welcome.text(a_welcome(None), terminal=True, program="tollhouse").plain
    assert "tollhouse keys create" in shown
    assert "export OPENAI_API_KEY=<your key>" in shown
    assert '"Authorization: Bearer $OPENAI_API_KEY"' in shown


def test_the_console_is_told_of_where_there_is_one() -> None:
    assert (
        "tollhouse console   (makes a key for http://127.0.0.1:1/console/)"
        in welcome.text(a_welcome(KEY), terminal=True, program="tollhouse").plain
    )
    assert "console" not in welcome.text(a_welcome(KEY, None), terminal=True, program="tollhouse").plain
