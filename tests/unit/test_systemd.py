"""The units are understood by systemd whole, expose little, and agree with the settings and with each other."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.cli.exits import Exit
from proxy.settings import load_settings as load_proxy
from sidecar.settings import load_settings as load_sidecar

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "conf/systemd"
PROXY = UNITS / "tollhouse.service"
SIDECAR = UNITS / "tollhouse-sidecar@.service"
GPU = UNITS / "tollhouse-gpu@.service"
COMMAND = UNITS / "tollhouse.sh"
DEPLOYMENT = ROOT / "docs/deployment.md"
PROGRAMS = "/opt/tollhouse/bin"
# The worst that systemd can say is 10.
MOST_EXPOSED = 3.0
ANALYZE = shutil.which("systemd-analyze")

wants_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze (Debian's systemd) is not installed")


def stage(unit: Path, folder: Path, change: tuple[str, str] = ("", "")) -> Path:
    """A copy in a folder where its programs exist; a template's is its first instance."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("tollhouse", "tollhouse-sidecar"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    staged = folder / unit.name.replace("@", "@0")
    staged.write_text(unit.read_text().replace(PROGRAMS, str(programs)).replace(*change))
    return staged


def analyze(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run([str(ANALYZE), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def seconds(unit: Path, key: str) -> float:
    (value,) = values(unit, key)
    number, minutes = re.fullmatch(r"(\d+)(min)?", value).groups()  # type: ignore[union-attr]  # else the test fails
    return int(number) * (60 if minutes else 1)


def environment(unit: Path) -> dict[str, str]:
    return dict(value.split("=", 1) for value in values(unit, "Environment"))


@wants_systemd
@pytest.mark.parametrize("unit", [PROXY, SIDECAR, GPU], ids=lambda unit: unit.name)
def test_systemd_understands_every_line_of_a_unit(unit: Path, tmp_path: Path) -> None:
    assert analyze("verify", "--man=no", stage(unit, tmp_path)) == (0, "", "")


@wants_systemd
@pytest.mark.parametrize("unit", [PROXY, SIDECAR], ids=lambda unit: unit.name)
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("WatchdogSec=", "WatchdogSecs="), "WatchdogSecs"),
        (("[Install]", "[Instal]"), "Instal"),
        (("Type=notify", "Type=notified"), "notified"),
        (("ProtectClock=yes", "ProtectClock=maybe"), "maybe"),
    ],
    ids=["key", "section", "value", "switch"],
)
def test_a_bad_key_of_a_unit_is_told(unit: Path, change: tuple[str, str], word: str, tmp_path: Path) -> None:
    assert word in analyze("verify", "--man=no", stage(unit, tmp_path, change))[2]


@wants_systemd
@pytest.mark.parametrize("unit", [PROXY, SIDECAR], ids=lambda unit: unit.name)
def test_a_unit_exposes_little(unit: Path, tmp_path: Path) -> None:
    code, out, err = analyze("security", "--offline=true", "--no-pager", stage(unit, tmp_path))
    assert (code, err) == (0, "")
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", out)
    assert float(level) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", [PROXY, SIDECAR], ids=lambda unit: unit.name)
def test_the_units_share_a_user_and_the_folder_of_the_sockets(unit: Path) -> None:
    assert values(unit, "User") == values(unit, "Group") == ["tollhouse"]
    assert values(unit, "RuntimeDirectory") == ["tollhouse"]
    assert values(unit, "RuntimeDirectoryMode") == ["0700"]
    assert values(unit, "RuntimeDirectoryPreserve") == ["yes"]


def test_the_units_know_how_long_the_settings_let_things_take() -> None:
    proxy = load_proxy(ROOT / "conf/proxy.yaml", {}).timeouts
    sidecar = load_sidecar(ROOT / "conf/sidecar.yaml", {}).timeouts
    assert seconds(PROXY, "TimeoutStopSec") > proxy.drain_s
    assert seconds(SIDECAR, "TimeoutStopSec") > sidecar.drain_s
    assert seconds(SIDECAR, "TimeoutStartSec") > sidecar.load_s
    assert seconds(SIDECAR, "WatchdogSec") > sidecar.stall_s


@pytest.mark.parametrize("unit", [PROXY, SIDECAR], ids=lambda unit: unit.name)
def test_a_unit_hears_of_readiness_and_ends_only_the_front(unit: Path) -> None:
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "KillMode") == ["mixed"]
    (codes,) = values(unit, "RestartPreventExitStatus")
    assert codes.split() == [str(Exit.USAGE.value), str(Exit.CONFIG_INVALID.value)]


@pytest.mark.parametrize("schema_code", [0, Exit.CONFIG_INVALID.value])
def test_a_wrong_configuration_is_the_main_process_s_exit(schema_code: int, tmp_path: Path) -> None:
    """For systemd looks at that one alone; and the server is the process that it started, which it hears."""
    stage(PROXY, tmp_path)
    program = tmp_path / "bin/tollhouse"
    program.write_text(f"""#!/bin/sh
case "$*" in
    *"db upgrade") exit {schema_code} ;;
    *serve) echo "$$ $*" >{tmp_path}/served ;;
esac
""")
    assert values(PROXY, "ExecStartPre") == []
    (line,) = values(PROXY, "ExecStart")
    process = subprocess.Popen(shlex.split(line.replace(PROGRAMS, str(program.parent))))
    assert process.wait(timeout=20) == schema_code
    served = tmp_path / "served"
    said = served.read_text() if served.exists() else ""
    assert said == ("" if schema_code else f"{process.pid} --config /etc/tollhouse/proxy.yaml serve\n")


def test_the_driver_is_loaded_before_the_devices_of_a_sidecar_are_looked_up() -> None:
    """Which is before the first line of its unit runs, and nothing may make a device there."""
    assert values(SIDECAR, "DeviceAllow") == ["char-nvidia* rw"]
    assert values(SIDECAR, "ExecStartPre") == []
    for key in ("Wants", "After"):
        assert values(SIDECAR, key) == [GPU.name.replace("@", "@%i")]
    assert values(GPU, "Type") == ["oneshot"]
    assert {key for key in ("DeviceAllow", "User", "CapabilityBoundingSet") if values(GPU, key)} == set()
    # The modules of the driver and of its unified memory, which only CUDA loads.
    plain, unified = (line.split()[1:] for line in values(GPU, "ExecStart"))
    assert ("-u" in plain, "-u" in unified) == (False, True)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The command of an installation, with another's folders, a `runuser` that shows what it runs, and root's id."""
    for name, line in {"runuser": 'echo "$PWD|$*"; exec env', "id": "echo 0"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    copy = tmp_path / "tollhouse"
    places = {"/etc/tollhouse/proxy.env": f"{tmp_path}/proxy.env", "/var/lib/tollhouse": str(tmp_path)}
    text = COMMAND.read_text()
    for place, ours in places.items():
        text = text.replace(place, ours)
    copy.write_text(text)
    copy.chmod(0o755)
    return copy


def test_the_command_of_an_installation_has_what_its_services_have(command: Path, tmp_path: Path) -> None:
    url = "postgresql+asyncpg://u@h/d?a=1&b=2"
    secrets = {"PGPASSWORD": "a b&$(c)", "TOLLHOUSE__DATABASE__URL": url}
    (tmp_path / "proxy.env").write_text(f'# a comment\n\nPGPASSWORD="a b&$(c)"\nTOLLHOUSE__DATABASE__URL={url}')
    done = subprocess.run(
        [command, "keys", "create", "--name", "two words"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *told = done.stdout.splitlines()
    (start,) = values(PROXY, "ExecStart")
    settings = "--config /etc/tollhouse/proxy.yaml"
    assert f"{PROGRAMS}/tollhouse {settings} serve" in start
    assert first == f"{tmp_path}|-u tollhouse -- {PROGRAMS}/tollhouse {settings} keys create --name two words"
    assert dict(line.split("=", 1) for line in told).items() >= (environment(PROXY) | secrets).items()


def test_the_command_of_an_installation_needs_no_file_of_secrets(command: Path, tmp_path: Path) -> None:
    subprocess.run([command, "usage"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)


def test_the_steps_for_a_gpu_put_the_engine_there(tmp_path: Path) -> None:
    copy = tmp_path / "sidecar.yaml"
    shutil.copy(ROOT / "conf/sidecar.yaml", copy)
    (line,) = re.findall(r"^sed -i .* /etc/tollhouse/sidecar\.yaml$", DEPLOYMENT.read_text(), re.MULTILINE)
    subprocess.run(shlex.split(line.replace("/etc/tollhouse", str(tmp_path))), check=True)
    engine = load_sidecar(copy, {}).engine
    assert (engine.device, engine.precision) == ("cuda", "bf16")


def test_the_steps_install_what_is_in_the_folder() -> None:
    text = DEPLOYMENT.read_text()
    assert "install -m 0644 conf/systemd/*.service /etc/systemd/system/\n" in text
    assert "install -m 0755 conf/systemd/tollhouse.sh /usr/local/bin/tollhouse\n" in text
    assert {path.name for path in UNITS.iterdir() if path.suffix != ".service"} == {COMMAND.name}
    assert PROXY.parent == COMMAND.parent


def test_the_environment_of_the_units_names_settings() -> None:
    proxy = load_proxy(ROOT / "conf/proxy.yaml", environment(PROXY))
    assert (proxy.policies, proxy.admin.socket) == ("/etc/tollhouse/policies", "/run/tollhouse/admin.sock")
    assert Path(proxy.database.url.partition("///")[2]).parts[0] == Path(proxy.secret_file).parts[0] == "data"
    told = environment(SIDECAR)
    assert told.pop("CUDA_VISIBLE_DEVICES") == "%i"
    sidecar = load_sidecar(ROOT / "conf/sidecar.yaml", told)
    assert (sidecar.socket, sidecar.cache) == ("/run/tollhouse/sidecar-%i.sock", "/var/cache/tollhouse")
