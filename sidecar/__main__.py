"""The `tollhouse-sidecar` command: serve one model, fetch or list those of the catalogue. Words and exit codes only."""

import asyncio
import ctypes
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from sidecar.catalog.errors import CatalogError, UnreachableError
from sidecar.catalog.fetch import Progress, damaged, is_whole, resolve
from sidecar.catalog.fetch import fetch as fetch_model
from sidecar.catalog.folder import weight_files
from sidecar.catalog.models import MODELS, CatalogModel, find
from sidecar.catalog.screen import FetchScreen, LoggedFetch
from sidecar.jsonlog import JsonLog, capture_stdlib, stderr_log
from sidecar.settings import Sidecar, load_settings
from sidecar.yamlfile import ConfigInvalidError

DEFAULT_CONFIG: Final = Path("conf/sidecar.yaml")
CONFIG_VARIABLE: Final = "TOLLHOUSE_SIDECAR_CONFIG"
DONE, FAILED, CONFIG_INVALID, NOT_REACHABLE, INTERRUPTED = 0, 1, 3, 4, 130

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h

_config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    envvar=CONFIG_VARIABLE,
    metavar="FILE",
    help=f"The configuration; if not given, what {CONFIG_VARIABLE} names, or {DEFAULT_CONFIG}.",
)
_quiet_option = click.option("-q", "--quiet", is_flag=True, help="Leave progress out.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")


@click.group("tollhouse-sidecar", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tollhouse", message="%(prog)s %(version)s")
def command() -> None:
    """Run one model behind a Unix socket, for the proxy (or for curl) to talk to."""


@command.command()
@_config_option
def serve(config: Path) -> int:
    """Run the sidecar. A catalogue model that is not in the cache is fetched first."""
    settings = load_settings(config, dict(os.environ))
    _keep_secrets()
    # Nothing here may ask a model hub for anything; read by huggingface_hub when it is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    log = stderr_log(settings.log_level)
    capture_stdlib(log)
    try:
        for source in _sources(settings):
            _bring(source, settings, LoggedFetch(log, source))
    except CatalogError as exc:
        return _start_failed(log, exc)
    # Imports the tokenizer's world, which `list` and `fetch` need not wait for.
    from sidecar import app  # noqa: PLC0415

    return _run(app.serve(settings, log))


@command.command()
@click.argument("name", required=False)
@_config_option
@_json_option
@_quiet_option
def fetch(name: str | None, config: Path, as_json: bool, quiet: bool) -> int:
    """Fetch the model NAME, or the configured ones, and convert them once into the cache."""
    settings = load_settings(config, dict(os.environ))
    told, *others = [_fetched(source, settings, quiet=quiet) for source in ([name] if name else _sources(settings))]
    if as_json:
        click.echo(json.dumps({**told, "also": others} if others else told))
    for one in [told, *others] if not as_json else []:
        click.echo(f"{one['name']} is ready in {one['path']}")
    return DONE


@command.command("list")
@_config_option
@_json_option
@click.option("--verify", is_flag=True, help="Read each model of the cache whole, and compare it with its checksums.")
def list_(config: Path, as_json: bool, verify: bool) -> int:
    """List the models of the catalogue, and which of them are in the cache."""
    settings = load_settings(config, dict(os.environ))
    cache = _cache(settings)
    rows = [_row(model, cache, verify=verify) for model in MODELS]
    if as_json:
        click.echo(json.dumps({"rows": rows, "configured": [_found(source, cache) for source in _sources(settings)]}))
    for row in rows if not as_json else []:
        state = "in the cache" if row["path"] else "not fetched yet"
        spoilt = f"damaged: {', '.join(row['damaged'])}"
        click.echo(f"{row['name']}  {spoilt if row['damaged'] else state}  {row['license']}")
        click.echo(f"    {row['description']}")
    return DONE


def _row(model: CatalogModel, cache: Path, *, verify: bool) -> dict[str, Any]:
    folder = model.folder(cache)
    whole = is_whole(folder)
    return {
        "name": model.name,
        "description": model.description,
        "license": model.license,
        "path": str(folder) if whole else None,
        "needed_bytes": model.needed_bytes,
        "damaged": damaged(folder) if whole and verify else (),
    }


def _found(source: str, cache: Path) -> dict[str, Any]:
    """Where a configured model lies, None if it must be fetched first, its weights, and why it cannot be used if so."""
    try:
        folder = resolve(source, cache)
        weights = [] if folder is None else [str(path) for path in weight_files(folder)]
    except CatalogError as exc:
        return {"source": source, "path": None, "weights": [], "error": {"message": exc.message, "hint": exc.hint}}
    return {"source": source, "path": None if folder is None else str(folder), "weights": weights, "error": None}


def run(arguments: list[str]) -> int:
    """Run one command line to its end, and give its exit code. With --json a failure is a document too."""
    try:
        returned = command.main(arguments, prog_name="tollhouse-sidecar", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (click.ClickException, ConfigInvalidError, CatalogError) as exc:
        code = _code(exc)
        if "--json" in arguments:
            click.echo(json.dumps(_document(exc, code)))
        else:
            _say(exc)
        return code
    return returned if isinstance(returned, int) else DONE


def _say(exc: click.ClickException | ConfigInvalidError | CatalogError) -> None:
    say = Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print
    if isinstance(exc, click.ClickException):
        exc.show()
    elif isinstance(exc, ConfigInvalidError):
        for problem in exc.problems:
            say(str(problem))
    else:
        say(f"Error: {exc.message}\n{exc.hint}")


def _document(exc: click.ClickException | ConfigInvalidError | CatalogError, code: int) -> dict[str, Any]:
    if isinstance(exc, ConfigInvalidError):
        return {"problems": [dataclasses.asdict(problem) for problem in exc.problems], "exit_code": code}
    message, hint = (exc.message, exc.hint) if isinstance(exc, CatalogError) else (exc.format_message(), "")
    return {"error": {"message": message, "hint": hint, "exit_code": code}}


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def _sources(settings: Sidecar) -> list[str]:
    """Of all models that are served."""
    return [settings.model.source] + ([] if settings.embedding is None else [settings.embedding.source])


def _fetched(source: str, settings: Sidecar, *, quiet: bool) -> dict[str, str | None]:
    """Fetch one model, and say what `--json` tells of it. Raises CatalogError."""
    with FetchScreen(Console(stderr=True, quiet=quiet), source) as screen:
        path = _bring(source, settings, screen)
    model = find(source)
    return {"name": source, "path": str(path), "license": None if model is None else model.license}


def _cache(settings: Sidecar) -> Path:
    return Path(settings.cache).expanduser()


def _code(exc: click.ClickException | ConfigInvalidError | CatalogError) -> int:
    if isinstance(exc, click.ClickException):
        return exc.exit_code
    if isinstance(exc, ConfigInvalidError):
        return CONFIG_INVALID
    return NOT_REACHABLE if isinstance(exc, UnreachableError) else FAILED


def _start_failed(log: JsonLog, exc: CatalogError) -> int:
    log.error("start_failed", reason=exc.message, hint=exc.hint)
    return _code(exc)


def _bring(source: str, settings: Sidecar, progress: Progress) -> Path:
    """The folder of a model, fetched if it must be. Raises CatalogError."""
    folder = resolve(source, _cache(settings))
    return fetch_model(source, _cache(settings), progress) if folder is None else folder


def _run(serving: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(serving)


def _keep_secrets() -> None:
    """No core dump and no debugger of the same user: prompts are in this process's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    main()
