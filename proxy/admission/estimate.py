"""What a call may cost at most, in tokens: first from its bytes, then from the exact prompt. Pure arithmetic.

What a client asked for is never cut: either it fits or the refusal says why. Only what it left open is sized here.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from proxy.exchange import Call, Estimate
from proxy.policy.schema import Tier
from sidecar.wire.internal import Endpoint, ModelState

_LISTS_OF_PROMPTS: Final = (Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS)


class Sizing(msgspec.Struct, frozen=True):
    """The sizes of one call on one model under one tier."""

    call: Call
    model: ModelState
    tier: Tier

    def bounded(self) -> Estimate | None:
        """An upper bound from the body's bytes; None where bytes do not bound tokens.

        A prompt that bytes put near the context window leaves no room for output in the sum, yet may in truth: so the
        output stays whole and the prompt is cut to what may stand beside it. With p the true prompt, w the output
        wanted, n choices: p + n × min(w, context - p) is never more than (context - w) + n × w.
        """
        prompt = self.prompt_bound
        if prompt is None:
            return None
        output = min(self._wanted(), self.model.max_context - 1)
        if self.one_prompt:
            prompt = min(prompt, self.model.max_context - output)
        return Estimate(prompt, max(self.least_output, output), self.call.choices, exact=False)

    def exact(self, prompt_tokens: int, tried: Sequence[int] = ()) -> Estimate:
        """The cost with a counted prompt. Output that nobody asked for is cut to what the limits could ever hold.

        `tried` are further limits, for what the cost would be with them.
        """
        output = min(self._wanted(), self.model.max_context)
        if self.one_prompt:
            output = min(output, self.model.max_context - prompt_tokens)
        if self.call.max_output_tokens is None:
            tier = self.tier
            given = (tier.tokens_per_minute, tier.monthly_tokens, tier.account_monthly_tokens)
            limits = [limit for limit in given if limit is not None]
            output = min([output, *((limit - prompt_tokens) // self.call.choices for limit in (*limits, *tried))])
        return Estimate(prompt_tokens, max(self.least_output, output), self.call.choices, exact=True)

    def tried(self, estimate: Estimate, limits: Sequence[int]) -> int:
        """What would be reserved in the place of the estimate if these limits were in force as well."""
        return self.exact(estimate.prompt_tokens, limits).total if limits and estimate.exact else estimate.total

    @property
    def prompt_bound(self) -> int | None:
        """The most tokens that all prompts can have together, by the body's bytes; None where these do not say."""
        bound = self.model.bound
        if bound is None or not self.call.plain:
            return None
        # Each prompt of a list is encoded on its own, with what any prompt costs.
        return bound.per_request * self.prompts + bound.per_message * self.call.messages + self.call.prompt_bytes

    @property
    def prompts(self) -> int:
        """How many prompts are encoded; messages are one."""
        return max(1, self.call.messages) if self.call.endpoint in _LISTS_OF_PROMPTS else 1

    @property
    def one_prompt(self) -> bool:
        """Whether the prompt tokens are one prompt's: several prompts share no context window."""
        return self.prompts == 1

    @property
    def least_output(self) -> int:
        """What each choice has at least; embeddings have none."""
        return 0 if self.call.endpoint is Endpoint.EMBEDDINGS else 1

    def _wanted(self) -> int:
        """Output tokens per choice as asked for, or as the tier gives; without any limit, the context window."""
        if self.call.max_output_tokens is not None:
            return self.call.max_output_tokens
        given = [self.model.max_context, self.tier.default_output_tokens, self.tier.max_output_tokens]
        return min(tokens for tokens in given if tokens is not None)
