"""One house for other people's clients: each finds it as its documentation says, by the environment's variables."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.house import MODEL, House
from tests.fakes.waiting import until

EMBEDDER = "all-minilm-l6-v2"
PAGE = Path(__file__).parents[2] / "docs/clients.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--programs", type=Path, default=Path(".venv/bin"), help="where Tollhouse is installed")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What others' standard tests leave out is in the docs, case by case; otherwise the run fails."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    left_out = [one for outcome in ("skipped", "xfailed", "xpassed") for one in reporter.stats.get(outcome, [])]
    cases = {one.nodeid.rpartition("::")[2].partition("[")[0] for one in left_out if "test_langchain" in one.nodeid}
    told = PAGE.read_text()
    if untold := sorted(case for case in cases if f"`{case}`" not in told):
        reporter.write_line(f"left out, and not in {PAGE.name}: {', '.join(untold)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def house(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Both models, and a key without limits. At the end nothing is left running."""
    programs = Path(pytestconfig.getoption("--programs")).absolute()
    house = House(tmp_path_factory.mktemp("h"), {"open": {}}, programs=programs)
    house.write(embedding={"id": EMBEDDER, "source": EMBEDDER})
    house.command("db", "upgrade")
    with pytest.MonkeyPatch.context() as environment:
        try:
            sidecar = house.start_sidecar()
            for model in (MODEL, EMBEDDER):
                sidecar.wait_for("ready", model=model)
            house.start_proxy()
            key = house.key("open")
            environment.setenv("OPENAI_BASE_URL", house.base_url)
            environment.setenv("OPENAI_API_KEY", key)
            environment.setenv("ANTHROPIC_BASE_URL", house.base_url.removesuffix("/v1"))
            environment.setenv("ANTHROPIC_API_KEY", key)
            # It asks GitHub for prices otherwise.
            environment.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
            yield house
            until(lambda: {row["state"] for row in house.ledger().values()} <= {"settled", "void", "refused"})
            state = house.state()
            assert (state["running"], state["waiting"]) == (0, 0)
        finally:
            house.stop()


@pytest.fixture(scope="session")
def model_folder(house: House) -> Path:
    """The folder of the model that is served, for what runs it beside the house."""
    fetch = [house.programs / "tollhouse-sidecar", "fetch", "--config", house.folder / "conf/sidecar.yaml", "--json"]
    return Path(json.loads(subprocess.run(fetch, capture_output=True, timeout=280, check=True).stdout)["path"])
