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
FILE = "EnvironmentFile"
# Of the sidecar's settings the one that only it has: whoever checks looks at all devices.
DEVICES = "CUDA_VISIBLE_DEVICES"
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


def test_the_proxy_may_do_what_it_would_do() -> None:
    """`proxy.console.trial` steps back, and @resources would forbid it."""
    assert values(PROXY, "SystemCallFilter") == ["@system-service", "~@privileged @resources", "setpriority"]


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
    text = COMMAND.read_text()
    for place in ("CONFIG=/etc/tollhouse", "cd /var/lib/tollhouse"):
        assert f"\n{place}\n" in text
        text = text.replace(place, place.replace(place[place.index("/") :], str(tmp_path)))
    copy.write_text(text)
    copy.chmod(0o755)
    return copy


def run(command: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{command.parent}:/usr/bin:/bin"}
    return subprocess.run([command, *arguments], env=path, cwd="/", capture_output=True, text=True, check=False)


def told(command: Path) -> dict[str, str]:
    """The variables that the command hands on."""
    done = run(command, "usage")
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split("=", 1) for line in done.stdout.splitlines()[1:])


def test_the_command_of_an_installation_has_what_its_services_have(command: Path, tmp_path: Path) -> None:
    (start,) = values(PROXY, "ExecStart")
    settings = "--config /etc/tollhouse/proxy.yaml"
    assert f"{PROGRAMS}/tollhouse {settings} serve" in start
    done = run(command, "keys", "create", "--name", "two words")
    settings = settings.replace("/etc/tollhouse", str(tmp_path))
    assert done.stdout.splitlines()[0] == (
        f"{tmp_path}|-u tollhouse -- {PROGRAMS}/tollhouse {settings} keys create --name two words"
    )
    first = {name: value.replace("%i", "0") for name, value in environment(SIDECAR).items() if name != DEVICES}
    (serve,) = values(SIDECAR, "ExecStart")
    config = serve.split(" --config ")[1]
    wanted = environment(PROXY) | first | {"TOLLHOUSE_SIDECAR_CONFIG": config}
    there = {name: value.replace("/etc/tollhouse", str(tmp_path)) for name, value in wanted.items()}
    assert told(command).items() >= there.items()


def test_the_command_of_an_installation_reads_the_services_files_as_systemd_does(command: Path, tmp_path: Path) -> None:
    """What is expected here is what systemd 252 makes of these lines."""
    assert [Path(file).name for file in (*values(PROXY, FILE), *values(SIDECAR, FILE))] == [
        "proxy.env",
        "sidecar-%i.env",
    ]
    skipped = ["# A=comment", ";B=comment", "", "my.setting=1", "9LIVES=1", "export C=1", "no variable"]
    lines = {
        """PLAIN=a"b'c $(d)  """: """a"b'c $(d)""",
        "  SPACED = a&b": "a&b",
        r"ESCAPED=a\b\\c\ d": r"ab\c d",
        r"""DOUBLE="a\"b\\c\$d\`e\f 'g' $(h)" """: r"""a"b\c$d`e\f 'g' $(h)""",
        r"""SINGLE='a\"b $(c) '""": r"""a\"b $(c) """,
        'NONE=""': "",
        "URL=postgresql+asyncpg://u@h/d?a=1&b=2": "postgresql+asyncpg://u@h/d?a=1&b=2",
    }
    (tmp_path / "sidecar-0.env").write_text("TOLLHOUSE_SIDECAR__MODEL__ID=mine\nPLAIN=the sidecar's\n")
    (tmp_path / "proxy.env").write_text("\n".join([*skipped, *lines]))
    found = told(command)
    assert found["TOLLHOUSE_SIDECAR__MODEL__ID"] == "mine"
    assert {line: found[line.split("=")[0].strip()] for line in lines} == lines
    assert found.keys().isdisjoint({"A", "B", "C", "9LIVES", "my.setting"})


@pytest.mark.parametrize("value", ['"a', "'a", '"a\\"', '"a"b', "'a' 'b'", "a\\"])
def test_a_value_that_goes_on_elsewhere_is_refused_and_not_shown(value: str, command: Path, tmp_path: Path) -> None:
    (tmp_path / "proxy.env").write_text(f"PGPASSWORD={value}\nb\n")
    done = run(command, "usage")
    assert (done.returncode, done.stdout) == (Exit.CONFIG_INVALID.value, "")
    assert done.stderr == (
        f"tollhouse: {tmp_path}/proxy.env: write the value of PGPASSWORD on one line and in one pair of quotes\n"
    )


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
    first = environment(SIDECAR)
    assert first.pop(DEVICES) == "%i"
    sidecar = load_sidecar(ROOT / "conf/sidecar.yaml", first)
    assert (sidecar.socket, sidecar.cache) == ("/run/tollhouse/sidecar-%i.sock", "/var/cache/tollhouse")
