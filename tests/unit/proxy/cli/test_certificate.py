"""The doctor's look at the certificate."""

from pathlib import Path

import msgspec
import pytest

from proxy.cli.checks.certificate import check_certificate
from proxy.cli.checks.check import Case, Status
from proxy.settings import Listen, Proxy, Tls, Upstream
from tests.fakes import certificates


def case(tls: Tls | None, host: str = "127.0.0.1") -> Case:
    settings = Proxy(upstreams=[Upstream(name="local", socket="s")], listen=Listen(host=host, tls=tls))
    return Case(Path("conf/proxy.yaml"), settings, Path("conf/sidecar.yaml"), None)


def test_without_one_plain_http_is_named() -> None:
    check = check_certificate(case(None))
    assert check.status is Status.OK
    assert "plain HTTP" in check.message


@pytest.mark.parametrize("host", ["::", "192.0.2.1"])
def test_plain_http_for_other_machines_is_a_warning(host: str) -> None:
    check = check_certificate(case(None, host))
    assert check.status is Status.WARNING
    assert ("plain HTTP" in check.message, host in check.message, "listen.tls" in check.hint) == (True, True, True)


@pytest.mark.parametrize(
    ("days", "status", "said"),
    [(60, Status.OK, "good until"), (3, Status.WARNING, "expires in 2 days"), (-1, Status.FAILED, "expired on")],
)
def test_its_end_is_told_in_time(tmp_path: Path, days: float, status: Status, said: str) -> None:
    tls = certificates.make(tmp_path, days=days)
    Path(tls.key).chmod(0o600)
    check = check_certificate(case(tls))
    assert check.status is status
    assert said in check.message


def test_a_key_for_everybody_is_told(tmp_path: Path) -> None:
    tls = certificates.make(tmp_path, days=60)
    Path(tls.key).chmod(0o644)
    check = check_certificate(case(tls))
    assert (check.status, check.hint) == (Status.WARNING, f"Run: chmod o-r {tls.key}")


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    tls = certificates.make(tmp_path)
    missing = msgspec.structs.replace(tls, key=str(tmp_path / "none.pem"))
    check = check_certificate(case(missing))
    assert check.status is Status.FAILED
    assert "No such file" in check.message
