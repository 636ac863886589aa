"""`tollhouse sign`: the headers of a signed request, or the whole of it as a command for curl.

Needs no configuration and no server: it is for those who use one. The key comes from a variable or a file, because what
stands in a command line is everybody's to see.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Final

import click

from proxy.cli.exits import CommandError, Exit
from proxy.cli.invocation import Invocation, command, pass_invocation
from proxy.cli.program import program
from proxy.signing import Signer, SigningKeyError

VARIABLE: Final = "TOLLHOUSE_KEY"
STDIN: Final = "-"


@command("sign")
@click.argument("url")
@click.option("--method", metavar="METHOD", help="POST if there is a body, else GET.")
@click.option("--body", metavar="FILE", help="The file that is sent as it is; - is standard input.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header that is sent too; repeatable."
)
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"Where the key is, beginning with ths_; else it is the variable {VARIABLE}.",
)
@click.option("--curl", is_flag=True, help="Show a command for curl that sends the request.")
@pass_invocation
def sign(
    invocation: Invocation,
    *,
    url: str,
    method: str | None,
    body: str | None,
    headers: tuple[str, ...],
    key_file: Path | None,
    curl: bool,
) -> None:
    """Sign a request to URL, and show the headers that it needs. They are good for one request, and for 5 minutes."""
    if curl and body == STDIN:
        raise click.UsageError("With --curl the body must be a file: the command has to name it.")
    content = b"" if body is None else _read(body)
    verb = (method or ("GET" if body is None else "POST")).upper()
    given = {} if body is None else {"content-type": "application/json"}
    given |= dict(_header(header) for header in headers)
    try:
        signer = Signer(_key(key_file))
    except SigningKeyError as exc:
        raise CommandError(str(exc), hint=f"Make one: {program()} keys create --signed …", code=Exit.USAGE) from exc
    signed = {**given, **signer.headers(verb, url, content, given)}
    shown = _curl(verb, url, body, signed) if curl else "\n".join(f"{name}: {value}" for name, value in signed.items())
    invocation.screen.reply({"method": verb, "url": url, "headers": signed}, lambda: shown)


def _key(file: Path | None) -> str:
    """Raises CommandError."""
    key = os.environ.get(VARIABLE, "") if file is None else file.read_text()
    if not key.strip():
        raise CommandError(f"There is no key: set {VARIABLE}, or give --key-file.", code=Exit.USAGE)
    return key


def _read(body: str) -> bytes:
    return sys.stdin.buffer.read() if body == STDIN else Path(body).read_bytes()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text!r} is not 'NAME: VALUE'.", param_hint="--header")
    return name.strip().lower(), value.strip()


def _curl(method: str, url: str, body: str | None, headers: dict[str, str]) -> str:
    words = ["curl", "-X", method, url]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    if body is not None:
        # Not --data, which takes the line breaks out.
        words += ["--data-binary", f"@{body}"]
    return shlex.join(words)
