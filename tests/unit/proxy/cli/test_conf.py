"""The two files in conf/: each setting is there, with its default."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from proxy.settings import Proxy, Upstream
from proxy.settings import load_settings as load_proxy
from sidecar.settings import Model, Sidecar
from sidecar.settings import load_settings as load_sidecar
from sidecar.yamlfile import ConfigInvalidError

CONF = Path(__file__).parents[4] / "conf"


def names(struct: type[msgspec.Struct], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting, by the keys that lead to it."""
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from names(field.type, (*above, field.encode_name))
        else:
            yield (*above, field.encode_name)


def written(tree: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(tree, dict):
        yield above
        return
    for key, value in tree.items():
        yield from written(value, (*above, key))


def test_the_proxy_s_file_says_what_the_defaults_are() -> None:
    upstream = Upstream(name="local", socket="run/sidecar.sock")
    assert load_proxy(CONF / "proxy.yaml", {}) == Proxy(upstreams=[upstream])


@pytest.mark.parametrize(
    ("written", "environ", "refused"),
    [
        ("listen: {port: 8001}", {}, True),
        ("admin: {port: 9000}", {"TOLLHOUSE__LISTEN__PORT": "9000"}, True),
        ("listen: {host: 0.0.0.0, port: 8001}", {}, True),
        ("{listen: {host: '::1', port: 9000}, admin: {host: '::', port: 9000}}", {}, True),
        ("listen: {host: 192.0.2.1, port: 8001}", {}, False),
        ("{listen: {port: 0}, admin: {port: 0}}", {}, False),
    ],
)
def test_one_address_for_both_listeners_is_refused(
    tmp_path: Path, written: str, environ: dict[str, str], refused: bool
) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(json.dumps({"upstreams": [{"name": "a", "socket": "s"}], **yaml.safe_load(written)}))
    if not refused:
        load_proxy(path, environ)
        return
    with pytest.raises(ConfigInvalidError) as invalid:
        load_proxy(path, environ)
    assert "listen.port and admin.port" in str(invalid.value)
    assert str(invalid.value).startswith(f"{path}:1:1: ")


def test_the_sidecar_s_file_says_what_the_defaults_are() -> None:
    model = Model(id="smollm2-135m-instruct", source="smollm2-135m-instruct")
    assert load_sidecar(CONF / "sidecar.yaml", {}) == Sidecar(model=model)


@pytest.mark.parametrize(("name", "struct"), [("proxy.yaml", Proxy), ("sidecar.yaml", Sidecar)])
def test_every_setting_is_shown(name: str, struct: type[msgspec.Struct]) -> None:
    shown = set(written(yaml.safe_load((CONF / name).read_text())))
    assert shown == set(names(struct))


def test_the_proxy_looks_for_the_sidecar_where_it_listens() -> None:
    (upstream,) = load_proxy(CONF / "proxy.yaml", {}).upstreams
    assert upstream.socket == load_sidecar(CONF / "sidecar.yaml", {}).socket
