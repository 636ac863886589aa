"""Runs sequences through a loaded engine, step by step, as the core does it; and through `generate`, to compare."""

from typing import Protocol

import torch
from transformers import PreTrainedModel

from sidecar.engine.model_runner import ModelRunner
from sidecar.engine.prefix_cache import PrefixCache
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.engine.tiers import Tier
from sidecar.wire.frames import Finish, Logprobs, Sampling, Submit

NEW_TOKENS = 12


class Loaded(Protocol):
    """A model ready to run; see `loader.Loaded`."""

    @property
    def runner(self) -> ModelRunner: ...
    @property
    def tier(self) -> Tier: ...


class Bench:
    """A loaded model with a scheduler of its own.

    Mutable: the scheduler, `logprobs` (of what it picked, by name), and what it counts.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        budget: int = 16,
        capacity: int = 600,
        slots: int = 16,
        speculation: int = 0,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._runner = loaded.runner
        pool = SlotPool(slots, capacity, loaded.runner.forward.release)
        self.scheduler = Scheduler(pool, budget, speculation=speculation, chunks=loaded.tier.chunks, prefixes=prefixes)
        self.logprobs: dict[str, list[Logprobs]] = {}
        self.cached_tokens = 0
        self.drafted = self.accepted = 0

    def answers(self, prompts: list[list[int]], sampling: Sampling | None = None) -> list[list[int]]:
        """What the prompts are answered with, all at once, greedily unless told otherwise."""
        made = [self._add(n, prompt, sampling or Sampling(temperature=0)) for n, prompt in enumerate(prompts)]
        while self.scheduler.has_work:
            self._step()
        assert self.scheduler.pool.used_tokens == 0
        return [sequence.tokens[sequence.prompt_tokens :] for sequence in made]

    def leave(self, prompt: list[int], after: int) -> None:
        """A client that leaves when so many tokens of its prompt have been read, or a few more."""
        sequence = self._add(0, prompt, Sampling(temperature=0))
        while sequence.computed < after:
            self._step()
        assert sequence.pending > 1
        self.scheduler.end(sequence, Finish.CANCELLED)

    def _add(self, number: int, prompt: list[int], sampling: Sampling) -> Sequence:
        submit = Submit(str(number), 0, prompt, NEW_TOKENS, sampling, [], logprobs=0)
        sequence = Sequence(submit, arrival=number, record=number)
        self.scheduler.add(sequence)
        return sequence

    def _step(self) -> None:
        batch = self.scheduler.schedule()
        self.cached_tokens += batch.cached_tokens
        if batch.copies:
            self._runner.copy(batch.copies)
        self.drafted += sum(len(chunk.draft) for chunk in batch.prefills)
        for outcome in self._runner.run(batch).outcomes if batch.chunks else ():
            assert not outcome.failed
            self.accepted += max(0, len(outcome.tokens) - 1)
            sequence = outcome.chunk.sequence
            self.logprobs.setdefault(sequence.submit.request_id, []).extend(outcome.logprobs)
            self.scheduler.computed(outcome.chunk, len(outcome.tokens))
            for token in outcome.tokens:
                if sequence.phase is not Phase.ENDED:
                    sequence.append(token)
            if sequence.phase is Phase.ENDED:
                self.scheduler.retire(sequence)


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The stock model's greedy answer, and the log-probability of each of its tokens."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    answer: list[int] = out.sequences[0, len(prompt) :].tolist()
    logprobs = torch.cat(out.logits).float().log_softmax(-1)
    return answer, logprobs.gather(1, torch.tensor(answer, device=logprobs.device)[:, None])[:, 0].tolist()
