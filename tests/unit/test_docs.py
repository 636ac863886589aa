"""What the documents say exists does, and what exists is in the documents: settings, tier rules, error codes, links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml

from proxy.cli.root import tollhouse
from proxy.policy.schema import TierRules
from proxy.settings import Proxy
from sidecar.__main__ import command as sidecar
from sidecar.protocol.openapi.bodies import DETOKENIZE, EMBEDDINGS, TOKENIZE, bodies
from sidecar.settings import Api, Sidecar
from sidecar.wire.anthropic import COUNT_TOKENS
from sidecar.wire.internal import Endpoint
from tests.fakes import settings_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"], key=str)
# Calls that make an error whose code is composed; docs have each of the whole codes.
FAMILIES = {"_above_max_value", "_below_min_value"}


def section(page: str, heading: str) -> str:
    """The text of a page under a heading of the second level."""
    parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return parts[parts.index(heading) + 1]


def settings(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names with their defaults, as the table writes them."""
    for field in msgspec.structs.fields(kind):
        name = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from settings(field.type, f"{name}.")
        elif field.default is msgspec.NODEFAULT:
            yield name, "required"
        else:
            yield name, f"`{msgspec.json.encode(field.default).decode()}`"


@pytest.mark.parametrize(("kind", "heading"), [(Proxy, "conf/proxy.yaml"), (Sidecar, "conf/sidecar.yaml")])
def test_each_setting_is_documented_with_its_default_and_no_other_is(kind: Any, heading: str) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", section("configuration.md", heading), re.MULTILINE)
    assert rows == list(settings(kind))


def test_the_settings_at_a_glance_are_those_of_the_code() -> None:
    message = "write it again: .venv/bin/python -m tests.fakes.settings_page"
    assert settings_page.PAGE.read_text() == settings_page.page(), message


def test_each_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []


def test_each_room_is_on_the_map() -> None:
    """Folders of code that the architecture leaves out."""
    told = (DOCS / "architecture.md").read_text()
    folders = {path.parent.relative_to(ROOT) for name in ("proxy", "sidecar") for path in ROOT.glob(f"{name}/*/*.py")}
    assert [str(folder) for folder in sorted(folders) if f"`{folder}/`" not in told] == []


@pytest.mark.parametrize(("kind", "file"), [(Proxy, "proxy.yaml"), (Sidecar, "sidecar.yaml")])
def test_the_shipped_configuration_shows_each_setting_with_its_default(kind: Any, file: str) -> None:
    shown = yaml.safe_load((ROOT / "conf" / file).read_text())
    for name, default in settings(kind):
        value = shown
        for part in name.split("."):
            assert part in value, name
            value = value[part]
        if default != "required":
            assert f"`{msgspec.json.encode(value).decode()}`" == default, name


def test_each_rule_of_a_tier_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("configuration.md", "policies/*.yaml"), re.MULTILINE)
    assert rows == list(TierRules.__struct_fields__)


def texts(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    """The strings that an expression may be, where that can be read off it."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body, constants)
            yield from texts(orelse, constants)
        case ast.JoinedStr(values=[*_, ast.Constant(value=str(ending))]):
            yield ending
        case _:
            pass


def error_codes() -> set[str]:
    """Every `code=…` that the two packages give an error; families by their common ending."""
    found: set[str] = set()
    for path in [*ROOT.glob("proxy/**/*.py"), *ROOT.glob("sidecar/**/*.py")]:
        tree = ast.parse(path.read_text())
        constants = {
            node.target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "code":
                found.update(texts(node.value, constants))
    return found


def test_each_error_code_is_documented_and_no_other_is() -> None:
    documented = re.findall(r"^\| `(\w+)` \| \d", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    members = {code for code in documented for ending in FAMILIES if code.endswith(ending)}
    assert {ending for ending in FAMILIES for code in members if code.endswith(ending)} == FAMILIES
    plain = error_codes() - FAMILIES
    assert plain - set(documented) == set()
    assert set(documented) - plain - members == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_commands_to_what_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    # What a block writes is the reader's.
    named = re.sub(r"> policies/\S+", "", text)
    paths = re.findall(r"(?<![\w/.-])((?:conf|policies|proxy|sidecar|tests|docs|migrations)/[\w./*-]*[\w/])", named)
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them: of a second one of a name `-1` and so on is left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text())
    ours = [(page.parent / name if name else page, anchor) for name, anchor in links if "://" not in name]
    lost = [(to.name, anchor) for to, anchor in ours if to.suffix == ".md" and anchor not in anchors(to)]
    assert lost == []


def command_lines() -> list[tuple[str, list[str]]]:
    """Each `tollhouse …` and `tollhouse-sidecar …` in the pages' code: the program, and what follows it."""
    code = [span for page in PAGES for span in re.findall(r"```sh\n.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)]
    lines = [line.split("#")[0] for span in code for line in span.strip("`").splitlines()]
    found = [re.search(r"(?:^|\./|proxy )(tollhouse(?:-sidecar)?) (.*)", line) for line in lines]
    return [(match[1], match[2].split()) for match in found if match and not match[2].startswith("[")]


def test_the_commands_that_the_pages_name_are_commands_with_these_options() -> None:
    programs: dict[str, click.Command] = {"tollhouse": tollhouse, "tollhouse-sidecar": sidecar}
    assert len(command_lines()) >= 10
    for program, words in command_lines():
        command, context = programs[program], click.Context(programs[program])
        rest = list(words)
        while isinstance(command, click.Group) and rest:
            found = command.get_command(context, rest.pop(0))
            assert found is not None, (program, words)
            command = found
        options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-k"}
        assert {word for word in rest if word.startswith("-")} <= options, (program, words)


@pytest.mark.parametrize(
    ("heading", "paths"),
    [
        ("Chats and completions", [Endpoint.CHAT, Endpoint.COMPLETIONS]),
        ("Messages", [Endpoint.MESSAGES, COUNT_TOKENS]),
        ("Embeddings", [EMBEDDINGS]),
        ("Tokens", [TOKENIZE, DETOKENIZE]),
    ],
)
def test_each_field_that_is_read_is_documented_and_no_other_is(heading: str, paths: list[str]) -> None:
    schemas = bodies(Api())
    read = {name for path in paths for name in schemas[path]["properties"]}
    first_cells = re.findall(r"^\| (`.+?`) \|", section("api.md", heading), re.MULTILINE)
    documented = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(documented) == len(set(documented))
    assert set(documented) == read
