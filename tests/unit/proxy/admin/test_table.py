"""The admin API, its document and the commands: the same powers and the same names, one to one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from proxy.admin.desk import Order
from proxy.admin.document import STATUSES, of_the_admin_api
from proxy.admin.errands import Errands
from proxy.admin.records import AuditQuery, KeyChanges, KeyLimitChanges, NewKey
from proxy.admin.table import ACTIONS, query_of, read
from proxy.cli.root import tollhouse
from proxy.scopes import DEFAULT, EVERY
from proxy.store.events import Actor
from sidecar.wire.errors import ApiError

# Groups of commands that are an operator's, whatever else there is.
GROUPS = ("accounts", "keys", "audit", "ledger")
DOCS = Path(__file__).parents[4] / "docs"


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(of_the_admin_api("1.2.3"))


def commands(name: str) -> Iterator[str]:
    group = tollhouse.get_command(click.Context(tollhouse), name)
    assert isinstance(group, click.Group)
    return (f"{name} {command}" for command in group.commands)


def test_each_action_is_once_in_the_table() -> None:
    for unique in ("name", "command"):
        assert len({getattr(action, unique) for action in ACTIONS}) == len(ACTIONS)
    assert len({(action.method, action.url) for action in ACTIONS}) == len(ACTIONS)


def test_each_action_is_a_command_and_each_command_an_action() -> None:
    known = {action.command for action in ACTIONS}
    assert {command for group in GROUPS for command in commands(group)} <= known
    for action in ACTIONS:
        context, command = click.Context(tollhouse), tollhouse
        for word in action.command.split():
            assert isinstance(command, click.Group)
            found: Any = command.get_command(context, word)
            assert found is not None, action.command
            command = found


def test_each_action_is_an_errand_of_its_name() -> None:
    assert {action.name for action in ACTIONS} - {"state"} <= set(vars(Errands))


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_a_command_takes_what_its_action_does(action: Any) -> None:
    """Each field is an option or an argument, under its own name or the one a command has for it."""
    context, command = click.Context(tollhouse), tollhouse
    for word in action.command.split():
        found: Any = command.get_command(context, word)
        command = found
    told = {parameter.name for parameter in command.params}
    spelt = {"scopes": "scope", "period": "month", "grace_s": "grace", "key_id": "key"}
    whole = {"list_accounts", "list_keys", "usage", "recording"}
    for field in msgspec.structs.fields(action.given):
        if field.name == "limits":
            assert set(msgspec.structs.fields(field.type)[0].name.split()) <= told
            assert {limit.name for limit in msgspec.structs.fields(field.type)} <= told
        elif field.name in {"after", "limit"} and action.name in whole:
            # These show all of it.
            continue
        else:
            assert told & {field.name, spelt.get(field.name, ""), f"new_{field.name}"}, field.name


def test_the_document_has_the_actions_and_nothing_else(document: Any) -> None:
    told = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert told.keys() == {(action.method, action.url) for action in ACTIONS}
    for action in ACTIONS:
        operation = told[action.method, action.url]
        assert operation["operationId"] == action.name
        assert f"`tollhouse {action.command}`" in operation["description"]
        assert f"`{action.scope}`" in operation["description"]
        assert operation["responses"].keys() == {"200", *STATUSES}
        queried = {told["name"] for told in operation["parameters"] if told["in"] == "query"}
        fields = set(action.given.__struct_fields__)
        assert queried == (fields if action.method == "GET" else set())
        assert ("requestBody" in operation) == (action.method != "GET" and bool(fields))


def test_the_manual_has_each_action_limit_and_scope() -> None:
    manual = (DOCS / "admin.md").read_text()
    rows = re.findall(r"^\| `([A-Z]+) (/admin/v1/[\w/{}]+)` \| `([a-z ]+)`", manual, re.MULTILINE)
    assert rows == [(action.method, action.url, action.command) for action in ACTIONS]
    assert re.findall(r"^\| `([a-z:]+)` \|", manual, re.MULTILINE) == list(EVERY)
    for name in KeyLimitChanges.__struct_fields__:
        assert f"`--{name.replace('_', '-')}`" in manual


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_references_lead_somewhere(document: Any) -> None:
    assert len(set(references(document))) > 20
    for reference in references(document):
        node = document
        for name in reference.removeprefix("#/").split("/"):
            node = node[name]


def test_a_query_is_read_as_it_is_written() -> None:
    given = AuditQuery(after="evt_1", limit=5, actor="cli")
    assert query_of(given) == {"after": "evt_1", "limit": "5", "actor": "cli"}
    assert read(AuditQuery, query_of(given)) == given


def test_a_field_that_is_left_out_is_no_null() -> None:
    assert msgspec.json.encode(KeyChanges(tier="pro")) == b'{"tier":"pro"}'
    assert read(KeyChanges, b'{"models": null}') == KeyChanges(models=None)
    assert read(KeyChanges, b"") == KeyChanges()


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ["root"]},
        {"scopes": []},
        {"metadata": {"": "x"}},
        {"metadata": {str(number): "x" for number in range(17)}},
        {"metadata": {"a": "x" * 513}},
        {"metadata": {"a": 1}},
        {"limits": {"requests_per_minute": 0}},
        {"limits": {"requests_per_minute": "10"}},
        {"limits": {"priority": 5}},
        {"allow_from": "192.0.2.0/24"},
        {"name": "a\nb"},
    ],
)
def test_a8_what_a_key_is_made_with_is_a_closed_set(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"account": "a", "tier": "t", "name": "n", **wrong}, NewKey)


def test_a8_an_order_gives_nobody_more_than_who_gives_it_has() -> None:
    by = Actor("key")
    Order(None, by).check_weaker(frozenset({"admin"}))
    admin = Order(None, by, scopes=frozenset({"admin", "admin:read", "chat"}))
    admin.check_weaker(frozenset({"chat"}))
    admin.check_weaker(frozenset({"admin"}))
    for more in (None, frozenset({"models"}), DEFAULT):
        with pytest.raises(ApiError) as refused:
            admin.check_weaker(more)
        assert (refused.value.status, refused.value.code) == (403, "insufficient_scope")
