"""Proxy and sidecar in a container each: not root, nothing to write but their volumes, and a chat between them."""

import json
import stat
import sys
from typing import Any

from tests.images.conftest import USER, House

# What an engine's `stop` does, from inside: our process with this subcommand is told to end, not the one that holds it.
END = """
import os, pathlib, signal, sys
for each in pathlib.Path('/proc').iterdir():
    if each.name.isdigit() and int(each.name) != os.getpid():
        try:
            words = (each / 'cmdline').read_bytes().split(b'\\0')
        except OSError:  # It has ended meanwhile.
            continue
        if words[2:3] == [sys.argv[1].encode()] and words[0].startswith(b'/opt/'):
            os.kill(int(each.name), signal.SIGTERM)
            sys.exit(0)
sys.exit('no such process')
"""
CHAT = """
import json, sys, openai
client = openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key=sys.argv[1], max_retries=0)
stream = client.chat.completions.create(
    model='smollm2-135m-instruct', messages=[{'role': 'user', 'content': 'Name three colours.'}],
    max_tokens=24, temperature=0, stream=True, stream_options={'include_usage': True},
)
chunks = list(stream)
said = [chunk.choices[0].delta.content or '' for chunk in chunks if chunk.choices]
print(json.dumps({'pieces': [each for each in said if each], 'tokens': chunks[-1].usage.completion_tokens}))
"""


def test_the_images_say_who_runs_them_and_how_to_ask_for_their_health(house: House) -> None:
    for service in (house.proxy, house.sidecar):
        assert service.config["User"] == f"{USER}:{USER}"
        assert service.config["Healthcheck"]["Test"][0] == "CMD"


def test_the_proxy_s_image_has_no_torch_and_no_pip(house: House) -> None:
    look = "from importlib.util import find_spec; print([n for n in ('torch', 'transformers', 'pip') if find_spec(n)])"
    assert house.proxy.container.do("python", "-c", look).strip() == "[]"


def test_the_images_have_what_the_docs_say_they_have(house: House) -> None:
    house.proxy.container.do("python", "-c", "import asyncpg, valkey, opentelemetry.exporter.otlp.proto.http")
    house.sidecar.container.do("python", "-c", "import opentelemetry.exporter.otlp.proto.http")


def test_the_console_is_in_the_proxy_s_image(house: House) -> None:
    page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8001/console/', timeout=9).read().decode())"
    assert "<title>" in house.proxy.container.do("python", "-c", page)


def test_a_container_runs_as_one_user_without_capabilities(house: House) -> None:
    for service in (house.proxy, house.sidecar):
        assert service.container.do("id", "-u").strip() == str(USER)
        capable = service.container.do("grep", "CapEff", "/proc/self/status")
        assert int(capable.split()[1], 16) == 0


def test_a_container_can_write_its_volumes_and_nothing_else(house: House) -> None:
    for service, kept in ((house.proxy, ("run", "data", "secrets")), (house.sidecar, ("run",))):
        for name in (*(f"/srv/tollhouse/{each}" for each in kept), "/tmp"):  # noqa: S108 - the container's
            service.container.do("sh", "-c", f"touch {name}/x && rm {name}/x")
        for name in ("/", "/srv/tollhouse", "/srv/tollhouse/conf", "/opt/tollhouse", "/etc"):
            service.container.do("sh", "-c", f"! touch {name}/x 2>&1 | grep -v 'Read-only file system'")


def test_the_sidecar_s_container_has_no_network(house: House) -> None:
    names = house.sidecar.container.do("python", "-c", "import socket; print([n for _, n in socket.if_nameindex()])")
    assert json.loads(names.replace("'", '"')) == ["lo"]


def test_only_the_user_of_both_may_use_the_shared_socket(house: House) -> None:
    found = (house.shared / "sidecar.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, USER)


def test_the_healthchecks_of_both_images_pass(house: House) -> None:
    house.proxy.healthy()
    house.sidecar.healthy()


def test_a_key_made_in_the_container_streams_a_chat_over_the_shared_socket(house: House) -> None:
    inside = house.proxy.container.do
    inside("tollhouse", "accounts", "create", "me")
    made = inside("tollhouse", "--json", "keys", "create", "--account", "me", "--tier", "pro", "--name", "k")
    done = house.proxy.container.beside(sys.executable, "-c", CHAT, json.loads(made)["secret"])
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert len(answer["pieces"]) > 5
    assert 0 < answer["tokens"] <= 24


def test_both_end_well_when_they_are_told_to(house: House) -> None:
    """The last one: it ends the house."""
    for service in (house.proxy, house.sidecar):
        service.container.do("python", "-c", END, "serve")
        assert service.process.wait(60) == 0
        assert service.events()[-1]["event"] in {"stopped", "draining"}
