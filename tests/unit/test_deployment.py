"""The files that deploy Tollhouse pass their own linters and agree with the code and with each other."""

import ipaddress
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from proxy.console.front import is_on
from proxy.policy.load import load_policy
from proxy.settings import Proxy
from proxy.settings import load_settings as load_proxy
from sidecar.settings import Sidecar
from sidecar.settings import load_settings as load_sidecar

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PROMTOOL = shutil.which("promtool")
DOCKERFILES = ["Dockerfile.proxy", "Dockerfile.sidecar"]
COMPOSE = ROOT / "conf/compose.yaml"
PROMETHEUS = ROOT / "conf/prometheus/prometheus.yml"
METRICS = ROOT / "docs/metrics.md"
IN_CONTAINERS = PROMETHEUS.with_name("containers.yml")
HOME = "/srv/tollhouse/"
# Of the compose file, mappings deeper than a service.
NESTED = [
    ("services", "proxy", "healthcheck"),
    ("services", "proxy", "build"),
    ("services", "proxy", "depends_on", "postgres"),
    ("services", "sidecar-gpu", "deploy"),
]


def check(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compose() -> Any:
    return yaml.safe_load(COMPOSE.read_text())


def mounts(service: Any) -> dict[str, str]:
    """What is mounted where, if no variable is set."""
    plain = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume) for volume in service["volumes"]]
    return dict(volume.split(":")[:2] for volume in plain)


def test_the_dockerfiles_pass_hadolint() -> None:
    check(BIN / "hadolint", "--no-color", *DOCKERFILES)


def test_the_scripts_pass_shellcheck() -> None:
    command = "conf/systemd/tollhouse.sh"
    check(BIN / "shellcheck", "tollhouse", ".ci/run", "conf/requirements/lock", "conf/requirements/audit", command)
    shell = shutil.which("dash") or "sh"
    for script in ("tollhouse", command):
        check(shell, "-n", script)


def test_the_compose_file_keeps_its_schema() -> None:
    check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_a_bad_key_anywhere_in_the_compose_file_is_told() -> None:
    validator = jsonschema.Draft202012Validator(get_builtin_schema("vendor.compose-spec"))
    assert validator.is_valid(compose())
    services = compose()["services"]
    for path in [(), *(("services", name) for name in services), *NESTED]:
        spoilt = node = compose()
        for part in path:
            node = node[part]
        node["tollhose"] = "x"
        assert not validator.is_valid(spoilt), path


def test_what_compose_starts_by_itself_and_with_a_profile() -> None:
    profiles: dict[str, set[str]] = {}
    for name, service in compose()["services"].items():
        for profile in service.get("profiles", ["default"]):
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "default": {"model", "sidecar", "proxy"},
        "postgres": {"postgres"},
        "monitoring": {"prometheus", "grafana"},
        "gpu": {"sidecar-gpu"},
    }


def test_what_waits_for_another_waits_until_it_is_well() -> None:
    services = compose()["services"]
    waits = [
        (name, other, rule)
        for name, service in services.items()
        for other, rule in service.get("depends_on", {}).items()
    ]
    for name, other, rule in waits:
        ends = services[other].get("restart") == "no"
        assert rule["condition"] == ("service_completed_successfully" if ends else "service_healthy"), (name, other)
        # Who has another profile may not be there.
        optional = services[other].get("profiles", []) not in ([], services[name].get("profiles"))
        assert rule.get("required", True) is not optional, (name, other)


def test_nobody_is_unhealthy_while_a_model_may_still_load() -> None:
    load_s = load_sidecar(ROOT / "conf/sidecar.yaml", {}).timeouts.load_s
    (image,) = re.findall(
        r"^HEALTHCHECK .*--start-period=(\w+) ", (ROOT / "Dockerfile.sidecar").read_text(), re.MULTILINE
    )
    services = compose()["services"]
    periods = [image, *(services[name]["healthcheck"]["start_period"] for name in ("proxy", "sidecar-gpu"))]
    assert "healthcheck" not in services["sidecar"]
    for period in periods:
        assert int(period.removesuffix("m")) * 60 >= load_s
    # What is counted begins when the model is there.
    for name in ("proxy", "sidecar", "sidecar-gpu"):
        assert services[name]["depends_on"]["model"]["condition"] == "service_completed_successfully"


def test_the_books_are_a_file_unless_a_database_is_named() -> None:
    said = compose()["services"]["proxy"]["environment"]
    default = re.fullmatch(r"\$\{TOLLHOUSE_DATABASE_URL:-(.+)\}", said["TOLLHOUSE__DATABASE__URL"])
    assert default is not None
    assert default[1] == load_proxy(ROOT / "conf/proxy.yaml", {}).database.url
    postgres = compose()["services"]["postgres"]
    password = postgres["environment"]["POSTGRES_PASSWORD"]
    assert password == said["PGPASSWORD"] == "${TOLLHOUSE_POSTGRES_PASSWORD:-}"
    assert "ports" not in postgres


def test_nothing_is_copied_into_a_root_that_is_read_only() -> None:
    """As compose does with secrets and configs that are not files, and then the container does not start."""
    given = {
        name: value
        for kind in ("secrets", "configs")
        for name, value in compose().get(kind, {}).items()
        if "file" not in value
    }
    for name, service in compose()["services"].items():
        used = [*service.get("secrets", []), *service.get("configs", [])]
        assert not service["read_only"] or not set(used) & set(given), name


def test_the_gpu_s_sidecar_is_the_second_upstream_that_the_docs_name() -> None:
    text = (ROOT / "docs/deployment.md").read_text()
    (line,) = re.findall(r"^TOLLHOUSE__UPSTREAMS=(.+)$", text, re.MULTILINE)
    upstreams = load_proxy(ROOT / "conf/proxy.yaml", {"TOLLHOUSE__UPSTREAMS": line}).upstreams
    gpu = compose()["services"]["sidecar-gpu"]
    assert [upstream.socket for upstream in upstreams] == [
        load_sidecar(ROOT / "conf/sidecar.yaml", {}).socket,
        gpu["environment"]["TOLLHOUSE_SIDECAR__SOCKET"],
    ]
    assert gpu["environment"]["TOLLHOUSE_SIDECAR__SOCKET"] in gpu["healthcheck"]["test"][-1]
    assert "environment" not in compose()["services"]["sidecar"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's prometheus) is not installed")
def test_prometheus_takes_its_configuration() -> None:
    check(str(PROMTOOL), "check", "config", PROMETHEUS, IN_CONTAINERS)


def test_the_shipped_configuration_is_valid() -> None:
    proxy = load_proxy(ROOT / "conf/proxy.yaml", {})
    sidecar = load_sidecar(ROOT / "conf/sidecar.yaml", {})
    assert [upstream.socket for upstream in proxy.upstreams] == [sidecar.socket]
    assert set(load_policy(ROOT / proxy.policies).tiers) == {"free", "pro", "unlimited"}


def test_prometheus_scrapes_the_admin_listener_for_the_proxy_and_each_sidecar() -> None:
    settings = load_proxy(ROOT / "conf/proxy.yaml", {})
    admin = f"{settings.admin.host}:{settings.admin.port}"
    proxy, sidecar = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    assert proxy["static_configs"] == [{"targets": [admin]}]
    assert sidecar["static_configs"] == [{"targets": [upstream.name for upstream in settings.upstreams]}]
    labels = {rule["target_label"]: rule.get("replacement", "$1") for rule in sidecar["relabel_configs"]}
    assert labels == {"instance": "$1", "__metrics_path__": "/metrics/sidecar/$1", "__address__": admin}


def test_every_container_has_only_what_it_needs() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service.get("restart") == "no" or "healthcheck" in service or "build" in service, name
    for name in ("sidecar", "sidecar-gpu"):
        assert compose()["services"][name]["network_mode"] == "none"


def test_prometheus_has_a_network_of_its_own_and_finds_the_proxy_by_name() -> None:
    """In the proxy's it would be left behind in one that has ended, as soon as the proxy's container starts again."""
    services = compose()["services"]
    prometheus, settings = services["prometheus"], load_proxy(ROOT / "conf/proxy.yaml", {})
    assert not any("network_mode" in services[name] for name in ("proxy", "prometheus", "grafana"))
    admin = f"{settings.admin.host}:{settings.admin.port}"
    there = PROMETHEUS.read_text().replace(admin, f"proxy:{settings.admin.port}")
    assert yaml.safe_load(IN_CONTAINERS.read_text()) == yaml.safe_load(there)
    assert prometheus["ports"] == ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"]
    told = dict(option.removeprefix("--").split("=") for option in prometheus["command"])
    mounts = {target: source for source, target, *_ in (volume.split(":") for volume in prometheus["volumes"])}
    source = mounts[str(Path(told["config.file"]).parent)]
    assert COMPOSE.parent / source / Path(told["config.file"]).name == IN_CONTAINERS
    assert told["storage.tsdb.path"] in mounts
    assert services["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def test_prometheus_is_told_to_keep_exemplars() -> None:
    option = "--enable-feature=exemplar-storage"
    assert option in compose()["services"]["prometheus"]["command"]
    (command,) = re.findall(r"^prometheus --config.file=.+?[^\\]$", METRICS.read_text(), re.MULTILINE | re.DOTALL)
    assert option in command


def test_the_host_and_nobody_beyond_it_reaches_the_console_of_a_container() -> None:
    proxy = compose()["services"]["proxy"]
    told = {name: value for name, value in proxy["environment"].items() if name.startswith("TOLLHOUSE__ADMIN__")}
    admin = load_proxy(ROOT / "conf/proxy.yaml", told).admin
    assert is_on(admin)
    # The console's address has the listener's port: under another one the key in it would go to who knows whom.
    assert f"127.0.0.1:{admin.port}:{admin.port}" in proxy["ports"]
    # A bridge has a private network, whatever the engine chooses.
    networks = [ipaddress.ip_network(network) for network in admin.api_from]
    assert all(network.is_private for network in networks)
    for gateway in ("172.17.0.1", "172.31.0.1", "192.168.240.1", "10.89.0.1", "127.0.0.1"):
        assert any(ipaddress.ip_address(gateway) in network for network in networks)


def test_the_containers_share_what_the_processes_share() -> None:
    services = compose()["services"]
    volumes = {name: mounts(services[name]) for name in ("proxy", "sidecar", "model")}
    assert volumes["proxy"]["run"] == volumes["sidecar"]["run"] == f"{HOME}run"
    assert volumes["sidecar"]["cache"] == volumes["model"]["cache"] == f"{HOME}cache"
    # Where no folder is named, none is made on the host.
    assert volumes["sidecar"]["models"] == volumes["model"]["models"] == "/models"
    for name in ("proxy", "sidecar"):
        for source in volumes[name]:
            assert source in compose()["volumes"] or (COMPOSE.parent / source).exists()


def test_the_images_run_as_one_user_who_owns_only_what_changes() -> None:
    for name in DOCKERFILES:
        text = (ROOT / name).read_text()
        final = text[text.rindex("\nFROM ") :]
        assert "\nUSER 10001:10001\n" in final
        assert "\nSTOPSIGNAL SIGTERM\n" in final
        assert "\nHEALTHCHECK " in final
        (owned,) = re.findall(r"install -d -o 10001 -g 10001 -m 0700 (.+)", final)
        (kept,) = re.findall(r"^VOLUME (.+)$", final, re.MULTILINE)
        assert owned.split() == yaml.safe_load(kept)
        assert f"\nWORKDIR {HOME.rstrip('/')}\n" in final


def test_f16_the_images_install_nothing_that_is_not_checked_but_torch() -> None:
    for name in DOCKERFILES:
        installs = re.findall(r"pip install ((?:[^&;\n]|\\\n)+)", (ROOT / name).read_text())
        assert installs
        for install in installs:
            checked = "--require-hashes" in install and "--no-deps" in install
            assert checked or "torch==" in install or install.rstrip("\\ \n").endswith("--no-build-isolation ."), (
                install
            )
    assert "torch" not in (ROOT / "Dockerfile.proxy").read_text().replace("No torch", "")


def test_packages_come_from_an_index_of_the_operator_s_if_there_is_one() -> None:
    """By a name that pip knows; an empty value of it is none."""
    for name in DOCKERFILES:
        text = (ROOT / name).read_text()
        building = text[text.index("\nFROM ") : text.rindex("\nFROM ")]
        assert building.index("\nARG PIP_INDEX_URL\n") < building.index("pip install")
    services = compose()["services"]
    for service in services.values():
        if "build" in service:
            assert service["build"]["args"]["PIP_INDEX_URL"] == "${PIP_INDEX_URL:-}"
    assert services["model"]["environment"] == {"PIP_INDEX_URL": "${PIP_INDEX_URL:-}"}


def test_the_images_have_every_file_that_the_package_brings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    brought = {Path(name) for names in project["tool"]["setuptools"]["data-files"].values() for name in names}
    for name in DOCKERFILES:
        text = (ROOT / name).read_text()
        building = text[: text.rindex("\nFROM ")]
        copied = {
            Path(source)
            for sources in re.findall(r"^COPY (.+) \S+$", building, re.MULTILINE)
            for source in sources.split()
        }
        assert all(copied & {each, *each.parents} for each in brought), name


def test_the_environment_of_the_images_names_settings() -> None:
    text = "".join((ROOT / name).read_text() for name in DOCKERFILES) + COMPOSE.read_text()
    named = set(re.findall(r"\bTOLLHOUSE(?:_SIDECAR)?__[A-Z_]+", text))
    assert named == {
        "TOLLHOUSE__ADMIN__API_FROM",
        "TOLLHOUSE__ADMIN__CONSOLE",
        "TOLLHOUSE__ADMIN__HOST",
        "TOLLHOUSE__DATABASE__URL",
        "TOLLHOUSE__LISTEN__HOST",
        "TOLLHOUSE__SECRET_FILE",
        "TOLLHOUSE__UPSTREAMS",
        "TOLLHOUSE_SIDECAR__CACHE",
        "TOLLHOUSE_SIDECAR__ENGINE__DEVICE",
        "TOLLHOUSE_SIDECAR__ENGINE__PRECISION",
        "TOLLHOUSE_SIDECAR__SOCKET",
    }
    for name in named:
        settings: Any = Sidecar if name.startswith("TOLLHOUSE_SIDECAR") else Proxy
        for part in name.split("__")[1:]:
            assert part.lower() in settings.__struct_fields__
            settings = settings.__annotations__[part.lower()]


def test_a_backup_has_its_folder_and_a_restore_ends_with_a_proxy_whose_books_are_checked() -> None:
    """Each in a block of its own, for a block is copied whole."""
    blocks = re.findall(r"^```sh\n(.+?)^```$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE | re.DOTALL)
    saved = [block for block in blocks if ">backups/" in block]
    restored = [block for block in blocks if re.search(r"<backups/|\bpg_restore ", block)]
    assert (len(saved), len(restored)) == (3, 4)
    assert all(block.startswith("install -d -m 700 backups\n") for block in saved)
    assert not any(re.search(r">backups/|\bpg_dump ", block) for block in restored)
    for block in restored:
        *_, up, last = block.splitlines()
        assert re.search(r"\bup --wait\b|\bdb upgrade\b|\brollout status\b", up)
        assert last.endswith("tollhouse ledger check")


def test_what_is_sent_to_the_builder_is_what_the_dockerfiles_copy() -> None:
    copied: set[str] = set()
    for name in DOCKERFILES:
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / name).read_text(), re.MULTILINE):
            copied.update(source.split("/")[0] for source in sources.split())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_grafana_is_given_what_the_compose_file_mounts() -> None:
    grafana = compose()["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    (provider,) = yaml.safe_load((ROOT / "conf/grafana/provisioning/dashboards/tollhouse.yaml").read_text())[
        "providers"
    ]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    (source,) = yaml.safe_load((ROOT / "conf/grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"].removeprefix("$") in grafana["environment"]
    interval = yaml.safe_load(PROMETHEUS.read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
