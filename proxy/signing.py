"""Signed requests, from the client's side: RFC 9421 with Ed25519, as a hook for the OpenAI SDK's HTTP client.

    signer = Signer(os.environ["TOLLHOUSE_KEY"])  # ths_…
    http = DefaultHttpxClient(event_hooks={"request": [signer.sign]})
    client = OpenAI(api_key=signer.bearer, base_url=…, http_client=http)

Needs the standard library and `cryptography` only, and nothing else of this package: the file may be copied. The server
(`proxy.signature`) takes the words and the signature base from here.
"""

import base64
import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

TAG: Final = "tollhouse-v1"
ALGORITHM: Final = "ed25519"
LABEL: Final = "tollhouse"
# What every signature covers, in the order in which we write it.
COVERED: Final = ("@method", "@authority", "@path", "@query", "authorization", "content-digest")
# Covered, too, if the request has it.
IDEMPOTENCY_KEY: Final = "idempotency-key"
# Not a secret: how one begins.
SECRET_PREFIX: Final = "ths_"  # noqa: S105
PUBLIC_PREFIX: Final = "thp_"
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_CHARS: Final = 10
SECRET_CHARS: Final = 32
CHECK_CHARS: Final = 6
_CHECK_POWERS: Final = (62**5, 62**4, 62**3, 62**2, 62, 1)
NONCE_BYTES: Final = 18
_SECRET: Final = re.compile(
    rf"{SECRET_PREFIX}(?P<id>[0-9A-Za-z]{{{ID_CHARS}}})_[0-9A-Za-z]{{{SECRET_CHARS + CHECK_CHARS}}}"
)
_PURPOSE: Final = b"tollhouse/request-signing/v1"
_DEFAULT_PORTS: Final = (":80", ":443")


class SigningKeyError(ValueError):
    """A text that is no signing key: another shape, or a typing error in it."""


class Request(Protocol):
    """What the hook needs of a request: httpx's and httpx2's have it."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> Any: ...
    @property
    def headers(self) -> Any: ...
    def read(self) -> bytes: ...
    async def aread(self) -> bytes: ...


class Signer:
    """Signs requests with one key. Stateless beside it."""

    def __init__(
        self,
        secret: str,
        *,
        now_s: Callable[[], float] = time.time,
        nonce: Callable[[], str] = lambda: secrets.token_urlsafe(NONCE_BYTES),
    ) -> None:
        """Raises SigningKeyError."""
        self.key_id, self._private = read_secret(secret)
        self._now_s = now_s
        self._nonce = nonce

    @property
    def bearer(self) -> str:
        """The key's public id, which stands where others have an API key."""
        return PUBLIC_PREFIX + self.key_id

    def sign(self, request: Request) -> None:
        """The hook of a client: `event_hooks={"request": [signer.sign]}`."""
        self._put(request, request.read())

    async def sign_async(self, request: Request) -> None:
        """The hook of an asynchronous client."""
        self._put(request, await request.aread())

    def headers(self, method: str, url: str, body: bytes, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a request needs to be taken. Of the headers `given`, `host` and `idempotency-key` are looked at."""
        parts = urlsplit(url)
        others = {name.lower(): value for name, value in (given or {}).items()}
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        return self._signed(method, others.get("host", parts.netloc.rpartition("@")[2]), target, body, others)

    def _put(self, request: Request, body: bytes) -> None:
        headers: MutableMapping[str, str] = request.headers
        target = request.url.raw_path.decode("ascii")
        headers.update(self._signed(request.method, headers["host"], target, body, headers))

    def _signed(self, method: str, host: str, target: str, body: bytes, given: Mapping[str, str]) -> dict[str, str]:
        added = {"authorization": f"Bearer {self.bearer}", "content-digest": content_digest(body)}
        fields = added
        covered: Sequence[str] = COVERED
        if IDEMPOTENCY_KEY in given:
            fields = {**added, IDEMPOTENCY_KEY: given[IDEMPOTENCY_KEY].strip()}
            covered = (*COVERED, IDEMPOTENCY_KEY)
        parameters = parameters_of(covered, int(self._now_s()), self.bearer, self._nonce())
        base = signature_base(covered, parameters, method=method, host=host, target=target, fields=fields)
        signature = base64.b64encode(self._private.sign(base)).decode()
        return {**added, "signature-input": f"{LABEL}={parameters}", "signature": f"{LABEL}=:{signature}:"}


def parameters_of(covered: Sequence[str], created_s: int, key_id: str, nonce: str) -> str:
    """The signature's parameters (RFC 9421, 2.3) as both sides write them."""
    names = " ".join(f'"{name}"' for name in covered)
    return f'({names});created={created_s};keyid="{key_id}";alg="{ALGORITHM}";nonce="{nonce}";tag="{TAG}"'


def signature_base(
    covered: Sequence[str], parameters: str, *, method: str, host: str, target: str, fields: Mapping[str, str]
) -> bytes:
    """What is signed (RFC 9421, 2.5). Raises KeyError for a field that is not there."""
    path, _, query = target.partition("?")
    derived = {"@method": method, "@authority": authority(host), "@path": path, "@query": f"?{query}"}
    lines = [f'"{name}": {derived[name] if name in derived else fields[name]}' for name in covered]
    return "\n".join([*lines, f'"@signature-params": {parameters}']).encode("latin-1")


def authority(host: str) -> str:
    """A Host header as RFC 9421, 2.2.3 has it: in lower case and without a port that is the default one.

    Whether that is 80 or 443 is not known behind a TLS terminator, so both are left out.
    """
    lower = host.strip().lower()
    default = next((port for port in _DEFAULT_PORTS if lower.endswith(port)), "")
    return lower.removesuffix(default)


def content_digest(body: bytes) -> str:
    """RFC 9530."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def make_secret(key_id: str) -> str:
    """A new signing key for an id."""
    body = f"{SECRET_PREFIX}{key_id}_{''.join(secrets.choice(ALPHABET) for _ in range(SECRET_CHARS))}"
    return body + checksum(body)


def read_secret(secret: str) -> tuple[str, Ed25519PrivateKey]:
    """The public id and the private key in a `ths_…`. Raises SigningKeyError."""
    matched = _SECRET.fullmatch(secret.strip())
    if matched is None or not secret.strip().endswith(checksum(secret.strip()[:-CHECK_CHARS])):
        raise SigningKeyError("This is no signing key, or one with a typing error: it begins with ths_ and is 53 long.")
    derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE)
    return matched["id"], Ed25519PrivateKey.from_private_bytes(derive.derive(secret.strip().encode()))


def public_key(secret: str) -> bytes:
    """The 32 bytes that the server keeps of a `ths_…`. Raises SigningKeyError."""
    _, private = read_secret(secret)
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def checksum(text: str) -> str:
    """CRC-32 in base 62: catches typing errors and secret scanners' false finds before anything is looked up."""
    check = zlib.crc32(text.encode())
    return "".join([ALPHABET[check // power % 62] for power in _CHECK_POWERS])
