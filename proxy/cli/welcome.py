"""What `tollhouse up` says when all is ready: the address, the model, the key, and ways to use them. Pure."""

import json
from typing import Final

import msgspec
from rich.text import Text

QUESTION: Final = "What is the capital of France?"
KEY_VARIABLE: Final = "OPENAI_API_KEY"


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a newcomer needs. `curl` is one line.

    `api_key` is there once, when the first key was made; `console` is its address, where there is one.
    """

    base_url: str
    model: str
    api_key: str | None
    tier: str | None
    curl: str
    admin_url: str
    console: str | None


def make(
    *, base_url: str, model: str, api_key: str | None, tier: str | None, admin_url: str, console: str | None
) -> Welcome:
    """The welcome, with its curl line."""
    return Welcome(
        base_url=base_url,
        model=model,
        api_key=api_key,
        tier=tier,
        curl=" ".join(curl(base_url, model, api_key)),
        admin_url=admin_url,
        console=console,
    )


def curl(base_url: str, model: str, api_key: str | None) -> list[str]:
    """A first request, as the parts of a shell command. Temperature 0, so that everyone gets the same answer."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    return [
        f"curl {base_url}/chat/completions",
        f'-H "Authorization: Bearer {api_key or f"${KEY_VARIABLE}"}"',
        '-H "Content-Type: application/json"',
        f"-d '{json.dumps(body)}'",
    ]


def text(welcome: Welcome, *, terminal: bool, program: str) -> Text:
    """The welcome for people. On a terminal the curl line is broken where a shell lets it be.

    `program`: how this program is called from where they are.
    """
    request = curl(welcome.base_url, welcome.model, welcome.api_key)
    shown = Text("\n")
    for name, value in (("URL", welcome.base_url), ("Model", welcome.model)):
        shown.append_text(_row(name, value))
    if welcome.api_key is None:
        shown.append_text(_row("Key", f"as made before; another: {program} keys create --help"))
    else:
        shown.append_text(_row("Key", welcome.api_key))
        shown.append(f"          tier {welcome.tier}, shown this once: keep it\n", "dim")
    shown.append("\n  Ask it something:\n\n", "bold")
    shown.append("    " + (" \\\n      " if terminal else " ").join(request) + "\n")
    shown.append("\n  Or point any OpenAI SDK at it:\n\n", "bold")
    shown.append(f"    export OPENAI_BASE_URL={welcome.base_url}\n")
    shown.append(f"    export {KEY_VARIABLE}={welcome.api_key or '<your key>'}\n")
    if welcome.console is not None:
        shown.append("\n  Or look at it in a browser:\n\n", "bold")
        shown.append(f"    {program} console   (makes a key for {welcome.console})\n")
    shown.append("\n  Ctrl-C ends it all. Logs: run/proxy.log, run/sidecar.log", "dim")
    return shown


def _row(name: str, value: str) -> Text:
    return Text.assemble((f"  {name:<8}", "bold"), (value, "cyan"), "\n")
