"""What a good key is misused for: addresses that it may not be used from, one prompt over and over, a key that leaked.

The lists and the leak concern every request, as soon as it is known whose it is; repeated prompts only those that a
model would run. Prompts are told apart by a digest under a secret of this process: none of them is kept.
"""

import contextlib
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

import msgspec

from proxy.addresses import Network, network, within
from proxy.admission.origins import Origins
from proxy.admission.rate import Cells, Charge, Rate, RateLook
from proxy.admission.refusal import REQUESTS, duration
from proxy.clock import Clock
from proxy.exchange import Call, Principal
from proxy.metrics import Metrics
from proxy.policy.schema import Policy, Rule, Tier
from proxy.verdict import SHADOW, RefusedError, Remark
from sidecar.jsonlog import JsonLog

EQUAL_PROMPTS: Final[Rule] = "equal_prompts_per_minute"
ADDRESSES: Final = "addresses"
# Of all keys together. Beyond it the prompt that was sent the longest ago is forgotten, and is a new one.
MOST_PROMPTS: Final = 65_536
MOST_LISTS: Final = 4096
_DIGEST_BYTES: Final = 16
_UNCOUNTED: Final = contextlib.nullcontext[tuple[Remark, ...]](())
_LOWER: Final = bytes(range(256)).lower()
_ESCAPED_SPACE: Final = (b"\\n", b"\\r", b"\\t")


class _Prompt(msgspec.Struct):
    """All that a body can ask with, whatever its route."""

    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")


_decoder: Final = msgspec.json.Decoder(_Prompt)


class Repeats:
    """How often each key sent each prompt. Mutable: `_used`, what was counted, the last used last."""

    def __init__(self, clock: Clock, most: int = MOST_PROMPTS) -> None:
        self._cells = Cells(clock)
        self._most = most
        self._secret = secrets.token_bytes(32)
        self._used: OrderedDict[tuple[str, Rate], None] = OrderedDict()

    def take(self, key_id: str, call: Call, limit: int) -> Charge | RateLook:
        """Count it; or, if it is one too many, take nothing and say so."""
        subject, rate = f"{key_id}:{self._digest(call)}", Rate(limit)
        look = self._cells.peek(subject, rate, 1)
        if not look.fits:
            return look
        charge = self._cells.commit(subject, rate, 1)
        self._used[subject, rate] = None
        self._used.move_to_end((subject, rate))
        if len(self._used) > self._most:
            (old, old_rate), _ = self._used.popitem(last=False)
            self._cells.forget(old, old_rate)
        return charge

    def give_back(self, charge: Charge) -> None:
        self._cells.refund(charge, 1)

    def _digest(self, call: Call) -> str:
        """Of the prompt without case and white space, so that these do not make it another one.

        What goes on from another response is another prompt, with the same words.
        """
        asked = _decoder.decode(call.body)
        hashed = hashlib.blake2b((call.previous_id or "").encode(), key=self._secret, digest_size=_DIGEST_BYTES)
        for part in (asked.messages, asked.prompt, asked.input, asked.instructions, asked.system):
            plain = bytes(part)
            for escaped in _ESCAPED_SPACE:
                plain = plain.replace(escaped, b"")
            plain = plain.translate(_LOWER, b" ")
            hashed.update(len(plain).to_bytes(8, "big") + plain)
        return hashed.hexdigest()


class Abuse:
    """The room. Mutable: `_networks`, the lists of keys as they were last read."""

    def __init__(self, policy: Callable[[], Policy], metrics: Metrics, clock: Clock, log: JsonLog) -> None:
        self._policy = policy
        self._metrics = metrics
        self._log = log
        self._repeats = Repeats(clock)
        self._origins = Origins(clock)
        self._networks: dict[tuple[str, ...], tuple[Network, ...]] = {}

    def came(self, principal: Principal, address: str) -> None:
        """A request of the key is here. Raises RefusedError 403 if it may not come from there."""
        denied = principal.deny_from and within(address, self._read(principal.deny_from))
        allowed = not principal.allow_from or within(address, self._read(principal.allow_from))
        if denied or not allowed:
            raise RefusedError(
                ADDRESSES, 403, "This API key may not be used from your address.", code="address_not_allowed"
            )
        tier = self._policy().tiers.get(principal.tier)
        limit = None if tier is None else tier.addresses_per_hour
        # A public id without its signature proves nothing, so it tells nothing either.
        if limit is None or principal.signed:
            return
        count = self._origins.came(principal.key_id, address)
        if count > limit and self._origins.to_be_told(principal.key_id):
            self._metrics.keys_from_many_addresses.inc()
            self._log.warning("key_from_many_addresses", key_id=principal.key_id, count=count, limit=limit)

    def asked(self, principal: Principal, call: Call) -> AbstractContextManager[tuple[Remark, ...]]:
        """While a call is admitted. Raises RefusedError 429 for a prompt that was sent too often.

        What is refused in here after all does not count.
        """
        tier = self._policy().tier(principal.tier)
        limit = tier.equal_prompts_per_minute
        return _UNCOUNTED if limit is None else self._counted(principal, call, tier, limit)

    @contextlib.contextmanager
    def _counted(self, principal: Principal, call: Call, tier: Tier, limit: int) -> Iterator[tuple[Remark, ...]]:
        taken = self._repeats.take(principal.key_id, call, limit)
        if isinstance(taken, RateLook):
            if EQUAL_PROMPTS not in tier.shadow:
                raise _repeated(taken, tier.name)
            yield (Remark(EQUAL_PROMPTS, SHADOW),)
            return
        try:
            yield ()
        except BaseException:
            self._repeats.give_back(taken)
            raise

    def _read(self, texts: tuple[str, ...]) -> tuple[Network, ...]:
        found = self._networks.get(texts)
        if found is None:
            if len(self._networks) >= MOST_LISTS:
                self._networks.clear()
            found = self._networks[texts] = tuple(network(text) for text in texts)
        return found


def _repeated(look: RateLook, tier: str) -> RefusedError:
    wait_s = look.retry_after_s or 0.0
    return RefusedError(
        EQUAL_PROMPTS,
        429,
        f"The same prompt was sent too often: Limit {look.limit} per minute in the tier '{tier}', Used {look.used}. "
        f"Please try again in {duration(wait_s)}, or send another one.",
        type=REQUESTS,
        code="repeated_prompt",
        retry_after_s=wait_s,
    )
