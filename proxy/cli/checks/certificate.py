"""The check of the certificate that the public listener shows."""

import datetime as dt
import stat
from pathlib import Path
from typing import Final

from cryptography import x509

from proxy.cli.checks.check import Case, Check, failed, ok, warning
from proxy.cli.screen import counted
from proxy.sockets import is_loopback
from proxy.tls import TlsFileError, make_context

NAME: Final = "tls"
SOON_DAYS: Final = 14


def check_certificate(case: Case) -> Check:
    """The certificate and its key belong together, are good for a while, and the key is not everybody's."""
    listen = case.settings.listen
    if listen.tls is None:
        return _plain(listen.host, case.config)
    try:
        make_context(listen.tls)
        shown = x509.load_pem_x509_certificate(Path(listen.tls.cert).read_bytes())
    except (TlsFileError, ValueError) as exc:
        return failed(NAME, str(exc), f"See listen.tls in {case.config}.")
    left = shown.not_valid_after_utc - dt.datetime.now(dt.UTC)
    if left <= dt.timedelta():
        return failed(NAME, f"{listen.tls.cert} expired on {shown.not_valid_after_utc:%Y-%m-%d}", "Renew it.")
    if left < dt.timedelta(days=SOON_DAYS):
        return warning(
            NAME, f"{listen.tls.cert} expires in {counted(left.days, 'day')}", "Renew it; it is read again by itself."
        )
    if Path(listen.tls.key).stat().st_mode & stat.S_IROTH:
        return warning(NAME, f"everybody may read {listen.tls.key}", f"Run: chmod o-r {listen.tls.key}")
    return ok(NAME, f"{listen.tls.cert}, good until {shown.not_valid_after_utc:%Y-%m-%d}")


def _plain(host: str, config: Path) -> Check:
    if is_loopback(host):
        return ok(NAME, "none; plain HTTP, which is for this machine or for a TLS terminator")
    return warning(
        NAME,
        f"none; plain HTTP on {host}, which other machines may reach",
        f"Keys travel unencrypted: see listen.tls in {config}. Fine where only a TLS terminator comes there.",
    )
