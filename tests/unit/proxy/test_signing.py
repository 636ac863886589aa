"""Signed requests from the client's side: what we sign a well-kept library takes, and the key is what it says."""

import datetime as dt
import subprocess
import sys
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    algorithms,
)

from proxy.signing import (
    Signer,
    SigningKeyError,
    authority,
    checksum,
    content_digest,
    make_secret,
    public_key,
    read_secret,
)

SECRET = make_secret("0123456789")
URL = "https://api.example.com/v1/chat/completions?beta=1&x=%20"
BODY = b'{"model":"m"}'


class Resolver(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> Any:
        assert key_id == "thp_0123456789"
        return Ed25519PublicKey.from_public_bytes(public_key(SECRET))

    def resolve_private_key(self, key_id: str) -> Any:
        raise NotImplementedError


def verified(request: Any) -> Any:
    """What the library makes of a signed request."""
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Resolver())
    (result,) = verifier.verify(request, max_age=dt.timedelta(minutes=1), expect_tag="tollhouse-v1")
    return result


def request(signer: Signer, **headers: str) -> httpx2.Request:
    made = httpx2.Request("POST", URL, content=BODY, headers=headers)
    signer.sign(made)
    return made


def test_r_what_we_sign_a_library_verifies() -> None:
    result = verified(request(Signer(SECRET)))
    assert [name.strip('"') for name in result.covered_components if "@signature" not in name] == [
        "@method",
        "@authority",
        "@path",
        "@query",
        "authorization",
        "content-digest",
    ]
    assert result.parameters["alg"] == "ed25519"
    assert len(result.parameters["nonce"]) == 24


def test_r_an_idempotency_key_is_covered_if_it_is_sent() -> None:
    result = verified(request(Signer(SECRET), **{"Idempotency-Key": "order-7"}))
    assert result.covered_components['"idempotency-key"'] == "order-7"


@pytest.mark.parametrize(
    ("part", "value"), [("method", "PUT"), ("url", "https://api.example.com/v1/completions"), ("url", "https://b/")]
)
def test_r_the_library_refuses_what_was_changed(part: str, value: str) -> None:
    made = request(Signer(SECRET))
    setattr(made, part, httpx2.URL(value) if part == "url" else value)
    with pytest.raises(InvalidSignature):
        verified(made)


def test_each_signature_has_a_nonce_of_its_own() -> None:
    signer = Signer(SECRET, now_s=lambda: 1_700_000_000.9)
    first, second = (request(signer).headers for _ in range(2))
    assert ";created=1700000000;" in first["signature-input"]
    assert first["signature-input"] != second["signature-input"]
    assert first["authorization"] == f"Bearer {signer.bearer}" == "Bearer thp_0123456789"


async def test_the_asynchronous_hook_signs_the_same() -> None:
    made = httpx2.Request("POST", URL, content=BODY)
    await Signer(SECRET).sign_async(made)
    assert verified(made)


def test_headers_for_another_client_are_those_of_the_hook() -> None:
    signer = Signer(SECRET, now_s=lambda: 1_700_000_000, nonce=lambda: "n" * 24)
    told = signer.headers("POST", URL, BODY, {"Idempotency-Key": "k"})
    hooked = request(signer, **{"idempotency-key": "k"}).headers
    assert told == {name: hooked[name] for name in told}
    bare = signer.headers("GET", "http://localhost", b"")
    assert bare == signer.headers("GET", "http://localhost/", b"")
    assert signer.headers("GET", "http://a:1/", b"", {"Host": "localhost"}) == bare


def test_a_host_is_compared_without_its_default_port() -> None:
    assert authority(" API.example.com:443") == authority("api.example.com:80") == "api.example.com"
    assert authority("[::1]:8000") == "[::1]:8000"


def test_a_key_is_one_copyable_string_that_says_when_it_was_mistyped() -> None:
    key_id, private = read_secret(f" {SECRET}\n")
    assert (key_id, len(SECRET)) == ("0123456789", 53)
    assert private.public_key().public_bytes_raw() == public_key(SECRET)
    swapped = SECRET[:20] + SECRET[21] + SECRET[20] + SECRET[22:]
    for wrong in ("", "sk-th_" + SECRET[4:], SECRET[:-1], swapped if swapped != SECRET else "ths_", SECRET + "x"):
        with pytest.raises(SigningKeyError) as caught:
            Signer(wrong)
        assert wrong[10:] not in str(caught.value) or not wrong[10:]


def test_the_same_string_makes_the_same_key_for_ever() -> None:
    """What was handed out must go on working: the derivation is fixed."""
    body = "ths_0123456789_" + "a" * 32
    assert public_key(body + checksum(body)).hex() == "f5f04a9e282dd6153881d2d99c48b85c19940d8a8fb88d0d7a966adfd66c550a"


def test_the_digest_is_rfc_9530_s() -> None:
    # RFC 9530, appendix D: the digest of {"hello": "world"} and a line feed.
    assert content_digest(b'{"hello": "world"}\n') == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


def test_the_module_needs_nothing_else_of_ours() -> None:
    ours = "{'proxy', 'sidecar', 'aiohttp', 'msgspec', 'sqlalchemy'}"
    code = f"import sys, proxy.signing; print(sorted(n for n in sys.modules if n.partition('.')[0] in {ours}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['proxy', 'proxy.signing']"


def test_a_streamed_body_is_read_before_it_is_signed() -> None:
    made = httpx2.Request("POST", URL, content=iter([b'{"model":', b'"m"}']))
    Signer(SECRET).sign(made)
    assert made.headers["content-digest"] == content_digest(BODY)
