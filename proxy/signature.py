"""Signed requests, from the server's side (RFC 9421): read from a request's head, and checked against a public key.

Pure. What must be so: exactly one signature with our tag, over all that `proxy.signing.COVERED` names, by Ed25519
whatever the request says. Whose key it is, whether it is fresh and whether it was here before, others find out.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from proxy.signing import ALGORITHM, COVERED, IDEMPOTENCY_KEY, PUBLIC_PREFIX, TAG, authority, signature_base
from proxy.structured_fields import Bare, FieldError, InnerList, byte_sequences, inner_lists

NONCE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
SIGNATURE_BYTES: Final = 64
DIGEST: Final = "sha-256"
# More than a signature of ours has, and of a few others beside it.
MOST_FIELD_CHARS: Final = 4096
_PARAMETERS: Final = frozenset({"created", "keyid", "alg", "nonce", "tag"})

# All values of a header, by its name in lower case.
Values = Callable[[str], tuple[str, ...]]


class SignatureError(ValueError):
    """It is no signature of ours, or not this request's. The message says what is wrong, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request's head says of its signature. `created_s` is in seconds of the Unix epoch."""

    key_id: str
    created_s: int
    nonce: str
    authority: str
    digest: bytes = field(repr=False)
    base: bytes = field(repr=False)
    value: bytes = field(repr=False)

    def check(self, body: bytes, public_keys: Sequence[bytes]) -> None:
        """`body` is the one that was sent, before any inflating. Raises SignatureError."""
        if not hmac.compare_digest(hashlib.sha256(body).digest(), self.digest):
            raise SignatureError("The Content-Digest is not that of the body.")
        if not any(self._is_by(public_key) for public_key in public_keys):
            raise SignatureError("The signature does not fit the request.")

    def _is_by(self, public_key: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.value, self.base)
        except InvalidSignature:
            return False
        return True


def read_signature(method: str, target: str, values: Values) -> Signature:
    """The one signature that is ours. Raises SignatureError for what has not its shape."""
    try:
        signed, value = _ours(_field(values, "signature-input"), _field(values, "signature"))
        digests = byte_sequences(_field(values, "content-digest"))
    except FieldError as exc:
        raise SignatureError(f"A header of the signature cannot be read: {exc}.") from exc
    created_s, key_id, nonce = _parameters(signed.parameters)
    covered = _covered(signed, with_idempotency=bool(values(IDEMPOTENCY_KEY)))
    fields = {name: _field(values, name) for name in covered if not name.startswith("@")}
    host = _field(values, "host")
    if not target.isascii():
        raise SignatureError("The URL is not in ASCII.")
    if fields["authorization"] != f"Bearer {key_id}":
        raise SignatureError("'keyid' and the Authorization header name different keys.")
    if len(digests.get(DIGEST, b"")) != hashlib.sha256().digest_size:
        raise SignatureError("The Content-Digest header must have a sha-256.")
    base = signature_base(covered, signed.text, method=method, host=host, target=target, fields=fields)
    return Signature(
        key_id.removeprefix(PUBLIC_PREFIX), created_s, nonce, authority(host), digests[DIGEST], base, value
    )


def _field(values: Values, name: str) -> str:
    found = values(name)
    if len(found) != 1:
        raise SignatureError(f"A signed request has the header '{name}' once.")
    text = found[0].strip(" \t")
    if len(text) > MOST_FIELD_CHARS or not text.isascii():
        raise SignatureError(f"The header '{name}' is too long, or not in ASCII.")
    return text


def _ours(signature_input: str, signature: str) -> tuple[InnerList, bytes]:
    """Others may sign, too, under tags of their own. Raises SignatureError, FieldError."""
    ours = {label: one for label, one in inner_lists(signature_input).items() if one.parameters.get("tag") == TAG}
    if len(ours) != 1:
        raise SignatureError(f"A request has exactly one signature with the tag '{TAG}'.")
    ((label, signed),) = ours.items()
    value = byte_sequences(signature).get(label, b"")
    if len(value) != SIGNATURE_BYTES:
        raise SignatureError("The signature is not there, or not one of Ed25519.")
    return signed, value


def _parameters(given: Mapping[str, Bare]) -> tuple[int, str, str]:
    """`created`, `keyid` and `nonce`. Raises SignatureError."""
    created_s, key_id, nonce = given.get("created"), given.get("keyid"), given.get("nonce")
    if set(given) != _PARAMETERS:
        raise SignatureError(f"A signature's parameters are {', '.join(sorted(_PARAMETERS))}.")
    if given["alg"] != ALGORITHM:
        # It names what is so in any case; the algorithm is the stored key's.
        raise SignatureError(f"'alg' must be '{ALGORITHM}'.")
    if isinstance(created_s, bool) or not isinstance(created_s, int):
        raise SignatureError("'created' must be a number of seconds.")
    if not isinstance(key_id, str):
        raise SignatureError("'keyid' must be a string.")
    if not isinstance(nonce, str) or NONCE.fullmatch(nonce) is None:
        raise SignatureError("'nonce' must be 16 to 64 letters, digits, '_' or '-'.")
    return created_s, key_id, nonce


def _covered(signed: InnerList, *, with_idempotency: bool) -> tuple[str, ...]:
    """Raises SignatureError unless it is just what must be covered, in whatever order."""
    names = tuple(item.value for item in signed.items)
    wanted = {*COVERED, IDEMPOTENCY_KEY} if with_idempotency else set(COVERED)
    if len(names) != len(set(names)) or set(names) != wanted or any(item.parameters for item in signed.items):
        raise SignatureError(f"A signature covers {', '.join(COVERED)}, and {IDEMPOTENCY_KEY} if it is sent.")
    return names
