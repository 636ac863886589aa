"""Whatever bytes come as a signature, it is read or refused: nothing else is raised, and nothing else verifies."""

import datetime as dt
from typing import Any

import httpx2
import pytest
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms
from hypothesis import given
from hypothesis import strategies as st

from proxy.signature import SignatureError, read_signature
from proxy.signing import COVERED, TAG, Signer, content_digest, make_secret, public_key, read_secret

SECRET = make_secret("0123456789")
URL = "https://api.example.com/v1/chat/completions?x=1"
TARGET = "/v1/chat/completions?x=1"
BODY = b'{"model":"m"}'
GOOD = {"host": "api.example.com", **Signer(SECRET).headers("POST", URL, BODY)}
NAMES = ("signature-input", "signature", "content-digest", "authorization", "host")


def verifies(headers: dict[str, tuple[str, ...]]) -> bool:
    """As the server does. Raises SignatureError."""
    signature = read_signature("POST", TARGET, lambda name: headers.get(name, ()))
    signature.check(BODY, [public_key(SECRET)])
    return True


def test_a_good_one_verifies() -> None:
    assert verifies({name: (value,) for name, value in GOOD.items()})


@given(name=st.sampled_from(NAMES), values=st.lists(st.text(max_size=60), max_size=2))
def test_r_any_text_in_a_header_is_refused(name: str, values: list[str]) -> None:
    if values == [GOOD[name]]:
        return
    with pytest.raises(SignatureError):
        verifies({key: (value,) for key, value in GOOD.items()} | {name: tuple(values)})


@given(
    name=st.sampled_from(NAMES[:4]),
    at=st.integers(0, 400),
    cut=st.integers(0, 8),
    put=st.text(alphabet='"=:;,()\\ ?0a/+@-\t\x00é', max_size=4),
)
def test_r_a_header_that_was_spoiled_somewhere_is_refused(name: str, at: int, cut: int, put: str) -> None:
    good = GOOD[name]
    at %= len(good)
    spoiled = good[:at] + put + good[at + cut :]
    try:
        assert verifies({key: (value,) for key, value in GOOD.items()} | {name: (spoiled,)})
    except SignatureError:
        return
    # The same in other words: blanks where they mean nothing, a parameter of the signature's bytes.
    words = [spoiled.replace(" ", "").replace("\t", "").partition(";")[0] for spoiled in (good, spoiled)]
    assert words[0] == words[1] or name == "content-digest"


class Keys(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id: str) -> Any:
        return read_secret(SECRET)[1]

    def resolve_public_key(self, key_id: str) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("covered", [COVERED, tuple(reversed(COVERED))])
def test_r_what_the_library_signs_is_taken(covered: tuple[str, ...]) -> None:
    headers = {"authorization": "Bearer thp_0123456789", "content-digest": content_digest(BODY)}
    request = httpx2.Request("POST", URL, content=BODY, headers=headers)
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys()).sign(
        request,
        key_id="thp_0123456789",
        created=dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC),
        nonce="n" * 16,
        label="mine",
        tag=TAG,
        covered_component_ids=covered,
        use_existing_digest=True,
    )
    assert verifies({name: (value,) for name, value in request.headers.items()})
