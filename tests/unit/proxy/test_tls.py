"""A certificate's files: which are used, which are refused, and when they are read again. Over a socket: tests/wire."""

import os
import ssl
from pathlib import Path

import pytest

from proxy.settings import Tls
from proxy.tls import Certificate, TlsFileError, make_context
from tests.fakes import certificates


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return certificates.make(tmp_path)


def earlier(path: str) -> None:
    """As written at another time: two writes of one moment cannot be told apart."""
    os.utime(path, ns=(1, 1))


def test_w11_nothing_older_than_tls_1_2_is_spoken(tls: Tls) -> None:
    context = make_context(tls)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_a_missing_file_is_named(tls: Tls, tmp_path: Path) -> None:
    with pytest.raises(TlsFileError, match=r"listen\.tls\.cert: .*none\.pem cannot be read: No such file"):
        make_context(Tls(cert=str(tmp_path / "none.pem"), key=tls.key))


@pytest.mark.parametrize("spoilt", ["cert", "key"])
def test_what_is_no_pem_is_refused(tls: Tls, spoilt: str) -> None:
    Path(getattr(tls, spoilt)).write_text("nothing")
    with pytest.raises(TlsFileError, match="must be a certificate chain and its key in PEM"):
        make_context(tls)


def test_a_key_of_another_certificate_is_refused(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = certificates.make(tmp_path / "other")
    with pytest.raises(TlsFileError, match="MISMATCH"):
        make_context(Tls(cert=tls.cert, key=other.key))


def test_a_key_with_a_passphrase_asks_nobody(tmp_path: Path) -> None:
    with pytest.raises(TlsFileError, match="passphrase"):
        make_context(certificates.make(tmp_path, passphrase=b"secret"))


def test_it_is_read_again_when_a_file_changed(tls: Tls, tmp_path: Path) -> None:
    certificate = Certificate(tls)
    assert not certificate.renew()
    assert certificate.renew(anyway=True)
    certificates.make(tmp_path)
    earlier(tls.cert)
    assert certificate.renew()
    assert not certificate.renew()


def test_a_half_written_pair_is_told_once_and_read_when_it_is_whole(tls: Tls, tmp_path: Path) -> None:
    certificate = Certificate(tls)
    before = Path(tls.key).read_bytes()
    certificates.make(tmp_path)
    earlier(tls.cert)
    after = Path(tls.key).read_bytes()
    Path(tls.key).write_bytes(before)
    with pytest.raises(TlsFileError):
        certificate.renew()
    assert not certificate.renew()
    Path(tls.key).write_bytes(after)
    earlier(tls.key)
    assert certificate.renew()


def test_files_that_are_gone_are_told(tls: Tls) -> None:
    certificate = Certificate(tls)
    Path(tls.cert).unlink()
    with pytest.raises(TlsFileError):
        certificate.renew()
