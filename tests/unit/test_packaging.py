"""The launcher installs once what is pinned, whatever interrupts it; the locks hold what pyproject.toml asks for."""

import os
import re
import shutil
import signal
import subprocess
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = ROOT / "conf/requirements"
LOCKS = ["base.txt", "sidecar.txt", "otel.txt", "dev.txt", "build.txt"]

# Stands for every Python: it writes down what it is asked for, and makes what the real one would. A pip that is to
# install torch can be held between two named pipes, or fail.
FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
    -V) echo "Python 3.13.0" ;;
    "-m venv "*)
        echo "venv" >>"$FAKE/log"
        mkdir -p "$3/bin" && echo "version = 3.13.0" >"$3/pyvenv.cfg" && cp "$0" "$3/bin/python"
        ;;
    *"-m pip install"*--editable*)
        echo "project" >>"$FAKE/log"
        printf '#!/bin/sh\\necho "ran $*"\\nexit 7\\n' >"$(dirname "$0")/tollhouse"
        chmod +x "$(dirname "$0")/tollhouse"
        ;;
    *"-m pip install"*torch==*)
        echo "torch ${*#*--no-compile }" >>"$FAKE/log"
        if [ -p "$FAKE/held" ]; then
            echo $$ >"$FAKE/held"
            read -r _ <"$FAKE/go"
        fi
        case "$*" in
            *--extra-index-url*) ;;
            *+cpu*) [ ! -e "$FAKE/no-cpu-build" ] || exit 1 ;;
        esac
        ;;
    *"-m pip install"*)
        echo "pins $(basename "$(echo "$*" | sed 's/.* -r //')")" >>"$FAKE/log"
        if [ -e "$FAKE/no-index" ]; then
            echo "pip's own words" >&2
            exit 1
        fi
        ;;
esac
"""
WHOLE = ["venv", "pins build.txt", "pins dev.txt", "torch --no-deps torch==2.13.0+cpu", "project"]


@dataclass
class Checkout:
    """A folder with the launcher, locks and a Python that is not one."""

    root: Path
    fake: Path
    environment: dict[str, str] = field(default_factory=dict)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "tollhouse", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As a terminal's shell has it, whatever started the tests: what is ignored cannot be trapped.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread
        )

    def start(self, *arguments: str) -> tuple[int, str, str]:
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def log(self) -> list[str]:
        """What was asked of Python since the last look."""
        path = self.fake / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def hold_torch(self) -> None:
        """Make the next installation of torch wait until it is let go."""
        for name in ("held", "go"):
            os.mkfifo(self.fake / name)

    def wait_until_held(self) -> int:
        """The process id of the pip that waits."""
        return int((self.fake / "held").read_text())

    def let_go(self) -> None:
        (self.fake / "held").unlink()
        (self.fake / "go").write_text("")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root, fake = tmp_path / "a checkout", tmp_path / "fake"
    for folder in (root / "conf/requirements", fake):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "tollhouse", root)
    shutil.copy(ROOT / "pyproject.toml", root)
    for lock in LOCKS:
        shutil.copy(PINS / lock, root / "conf/requirements")
    python = fake / "python3.13"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    environment = {"PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake), "TOLLHOUSE_TORCH": "cpu"}
    return Checkout(root, fake, environment)


on_linux = pytest.mark.skipif(
    os.uname().sysname != "Linux" or os.uname().machine not in {"x86_64", "aarch64"},
    reason="only there has torch a build with the label +cpu",
)


@on_linux
def test_the_first_start_installs_and_becomes_the_command(checkout: Checkout) -> None:
    assert checkout.start("up", "-v", "two words")[:2] == (7, "ran up -v two words\n")
    assert checkout.log() == WHOLE
    assert not list(checkout.root.glob(".venv/installing"))


def test_the_second_start_asks_nothing_of_python(checkout: Checkout) -> None:
    checkout.start()
    checkout.log()
    assert checkout.start("serve") == (7, "ran serve\n", "")
    assert checkout.log() == []


def test_a_link_to_the_launcher_starts_the_checkout_it_points_to(checkout: Checkout, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "th"
    link.parent.mkdir()
    link.symlink_to("../a checkout/tollhouse")
    done = subprocess.run([link, "x"], env=checkout.environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.stdout == b"ran x\n"
    assert (checkout.root / ".venv/bin/tollhouse").exists()


def test_a_changed_lock_makes_the_environment_anew(checkout: Checkout) -> None:
    checkout.start()
    checkout.log()
    (checkout.root / "conf/requirements/dev.txt").write_text("other==1\n")
    (checkout.root / ".venv/left-over").touch()
    assert checkout.start()[0] == 7
    assert checkout.log()[0] == "venv"
    assert not (checkout.root / ".venv/left-over").exists()


def test_a_changed_pyproject_installs_the_project_alone(checkout: Checkout) -> None:
    checkout.start()
    checkout.log()
    (checkout.root / "pyproject.toml").write_text("[project]\n")
    assert checkout.start()[0] == 7
    assert checkout.log() == ["project"]
    assert checkout.start()[2] == ""


def test_a_moved_checkout_makes_its_environment_anew(checkout: Checkout) -> None:
    checkout.start()
    checkout.log()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.start()[0] == 7
    assert checkout.log()[0] == "venv"


def test_an_environment_that_somebody_else_made_is_added_to(checkout: Checkout) -> None:
    (checkout.root / ".venv/bin").mkdir(parents=True)
    shutil.copy(checkout.fake / "python3.13", checkout.root / ".venv/bin/python")
    (checkout.root / ".venv/mine").touch()
    assert checkout.start()[0] == 7
    assert "venv" not in checkout.log()
    assert (checkout.root / ".venv/mine").exists()


def test_a_failed_install_shows_why_and_the_next_start_begins_again(checkout: Checkout) -> None:
    (checkout.fake / "no-index").touch()
    code, _, said = checkout.start()
    assert code == 1
    assert "pip's own words" in said
    assert "is the package index in reach?" in said
    checkout.log()
    (checkout.fake / "no-index").unlink()
    code, _, said = checkout.start()
    assert code == 7
    assert "pip's own words" not in said
    assert checkout.log()[0] == "venv"


@on_linux
def test_torch_comes_from_its_own_index_where_the_configured_one_has_no_cpu_build(checkout: Checkout) -> None:
    (checkout.fake / "no-cpu-build").touch()
    assert checkout.start()[0] == 7
    first, second = [line for line in checkout.log() if line.startswith("torch")]
    assert first == "torch --no-deps torch==2.13.0+cpu"
    assert second.startswith(f"{first} --extra-index-url https://download.pytorch.org/whl/cpu --retries 1")


def test_a_cuda_build_comes_with_its_libraries_and_is_told_before_it_is_fetched(checkout: Checkout) -> None:
    checkout.environment["TOLLHOUSE_TORCH"] = "cuda"
    code, _, said = checkout.start()
    assert code == 7
    assert "torch torch==2.13.0" in checkout.log()
    assert said.index("several GB") < said.index("TOLLHOUSE_TORCH=cpu ./tollhouse") < said.index("installing pip")
    assert checkout.start()[2] == ""
    checkout.environment["TOLLHOUSE_TORCH"] = "rocm"
    assert checkout.start()[0] == 2


def test_two_starts_at_once_install_once(checkout: Checkout) -> None:
    checkout.hold_torch()
    first = checkout.popen("one")
    checkout.wait_until_held()
    second = checkout.popen("two")
    assert second.stderr is not None
    assert "another start is installing" in second.stderr.readline()
    checkout.let_go()
    assert first.communicate(timeout=60)[0] == "ran one\n"
    assert second.communicate(timeout=60)[0] == "ran two\n"
    assert checkout.log().count("venv") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_install_is_begun_again(checkout: Checkout, number: signal.Signals) -> None:
    checkout.hold_torch()
    process = checkout.popen()
    pip = checkout.wait_until_held()
    process.send_signal(number)
    if number == signal.SIGKILL:
        # Its pip lives on: it is let go, as a real one would end at some time.
        assert process.wait(60) == -number
        checkout.let_go()
    else:
        assert process.wait(60) == 128 + number
        # Its pip has ended before it: without the lock it would write into what the next start makes.
        with pytest.raises(ProcessLookupError):
            os.kill(pip, signal.SIGKILL)
        assert not (checkout.root / ".venv/installing").exists()
        (checkout.fake / "held").unlink()
    process.communicate()
    assert not (checkout.root / ".venv/tollhouse.stamp").exists()
    checkout.log()
    assert checkout.start()[0] == 7
    assert checkout.log()[0] == "venv"


def test_another_system_is_refused_before_anything_is_made(checkout: Checkout) -> None:
    uname = checkout.fake / "uname"
    uname.write_text("#!/bin/sh\necho Darwin\n")
    uname.chmod(0o755)
    code, _, said = checkout.start("up")
    assert code == 1
    assert said == (
        "tollhouse: Tollhouse runs on Linux, and this is Darwin. Its containers run here: docs/deployment.md\n"
    )
    assert checkout.log() == []
    assert not (checkout.root / ".venv").exists()


def test_without_a_python_the_launcher_says_what_to_do(checkout: Checkout, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "mkdir", "readlink", "rm", "sed", "sleep", "uname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    checkout.environment["PATH"] = str(tools)
    code, _, said = checkout.start()
    assert code == 1
    assert "Python 3.11 or newer is needed" in said
    assert "apt-get install" in said
    checkout.environment["TOLLHOUSE_PYTHON"] = "/nowhere/python"
    assert "/nowhere/python" in checkout.start()[2]


def pinned(lock: str) -> dict[str, list[Requirement]]:
    """The packages of a lock; some have several versions, each for other machines."""
    found: dict[str, list[Requirement]] = {}
    for line in (PINS / lock).read_text().splitlines():
        if match := re.fullmatch(r"(\S+==\S+(?: ; .+)?) \\", line):
            requirement = Requirement(match[1])
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    return specifier.version


def wanted(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for group in groups for text in group]


@pytest.mark.parametrize("lock", [*LOCKS, "clients.txt"])
def test_f16_a_lock_pins_every_package_with_its_hashes_and_nothing_of_cuda(lock: str) -> None:
    text = (PINS / lock).read_text()
    blocks = re.split(r"^(?=\S)", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(blocks) == sum(len(found) for found in pinned(lock).values()) > 0
    for block in blocks:
        assert re.fullmatch(r"\S+==\S+(?: ; .+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", block), block
    assert "://" not in text
    assert not [name for name in pinned(lock) if re.match(r"torch|triton|nvidia|cuda", name)]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("base.txt", ["postgres", "valkey"]),
        ("sidecar.txt", ["sidecar"]),
        ("otel.txt", ["otel"]),
        ("dev.txt", ["sidecar", "postgres", "valkey", "otel", "dev"]),
    ],
)
def test_a_lock_has_what_pyproject_asks_for(lock: str, extras: list[str]) -> None:
    packages = pinned(lock)
    for requirement in wanted(*extras):
        if requirement.name != "torch":
            versions = [version(found) for found in packages[canonicalize_name(requirement.name)]]
            assert all(requirement.specifier.contains(found) for found in versions), requirement


def test_the_clients_lock_has_what_is_asked_for() -> None:
    lines = (PINS / "clients.in").read_text().splitlines()
    for requirement in [Requirement(line) for line in lines if not line.startswith("#")]:
        versions = [version(found) for found in pinned("clients.txt")[canonicalize_name(requirement.name)]]
        assert versions
        assert all(requirement.specifier.contains(found) for found in versions)


def test_f16_the_lock_of_the_clients_for_node_names_no_registry() -> None:
    text = (ROOT / "tests/clients/node/package-lock.json").read_text()
    assert '"integrity"' in text
    assert '"resolved"' not in text


def test_the_locks_agree_on_every_version() -> None:
    base, sidecar, otel, dev, build = (
        {name: [version(each) for each in found] for name, found in pinned(lock).items()} for lock in LOCKS
    )
    # The proxy's image has the drivers of its servers, and what they need on old Pythons.
    assert set(base) - {"asyncpg", "valkey", "async-timeout"} < set(sidecar) < set(dev)
    assert base.items() <= dev.items()
    assert sidecar.items() <= dev.items()
    assert otel.items() <= dev.items()
    assert build["setuptools"] == dev["setuptools"]


def test_the_clients_have_the_stock_model_of_the_server_s_tests() -> None:
    clients, dev = pinned("clients.txt"), pinned("dev.txt")
    for name in ("accelerate", "transformers"):
        assert clients[name] == dev[name]


def test_the_locks_have_what_torch_needs() -> None:
    named = {Requirement(line).name for line in (PINS / "torch.in").read_text().splitlines() if line[0] != "#"}
    needs = [Requirement(text) for text in metadata.requires("torch") or []]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    # A CUDA build also needs CUDA's libraries, which come with it.
    needs = [need for need in needs if not re.match(r"triton|nvidia|cuda", need.name)]
    assert {need.name for need in needs} == named
    for need in needs:
        for lock in ("sidecar.txt", "dev.txt", "clients.txt"):
            for found in pinned(lock)[canonicalize_name(need.name)]:
                assert need.specifier.contains(version(found))


def test_every_place_installs_the_same_torch() -> None:
    launcher, image = (ROOT / "tollhouse").read_text(), (ROOT / "Dockerfile.sidecar").read_text()
    (release,) = re.findall(r"^TORCH=(\S+)$", launcher, re.MULTILINE)
    assert re.findall(r'"torch==([\d.]+)(?:\+cpu)?"', image) == [release, release]
    assert f"torch {release} " in (PINS / "torch.in").read_text()
    (asked,) = [requirement for requirement in wanted("sidecar") if requirement.name == "torch"]
    assert asked.specifier.contains(release)
    assert metadata.version("torch").split("+")[0] == release


def test_what_is_installed_here_is_what_the_lock_pins() -> None:
    for name, requirements in pinned("dev.txt").items():
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate():
                assert metadata.version(name) == version(requirement)
