"""Sixteen streams at once, of mixed lengths: each text is what `model.generate` gives for its prompt alone."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "smollm2-135m-instruct"
NEW_TOKENS = 32
TIE = 1e-4
SUBJECTS = [
    "the sea", "bread", "a lighthouse", "winter", "an old clock", "rivers", "the moon", "a small dog",
    "trains", "music", "a broken window", "gardens", "glass", "mountains", "letters", "the wind",
]  # fmt: skip
PROMPTS = [
    f"Write a few sentences about {subject}. " + "Mind the details, please. " * (index * 5)
    for index, subject in enumerate(SUBJECTS)
]


async def stream_all(base_url: str, key: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=280) as client:

        async def one(index: int, prompt: str) -> str:
            await asyncio.sleep(0.05 * (index % 5))
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=NEW_TOKENS - index,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        return await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(PROMPTS)))


class Reference:
    """The stock model, in fp32, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt_ids(self, prompt: str) -> torch.Tensor:
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids: torch.Tensor = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        return ids

    def generate(self, prompt_ids: torch.Tensor, new_tokens: int) -> list[int]:
        with torch.inference_mode():
            out = self.model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
            )
        ids: list[int] = out[0, prompt_ids.shape[1] :].tolist()
        return ids

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def is_tie(self, prompt_ids: torch.Tensor, ids: list[int], ours: str) -> bool:
        """Whether the texts part at a token whose two best candidates are equally likely, within TIE."""
        common = max(n for n in range(len(ids) + 1) if ours.startswith(self.text(ids[:n])))
        context = torch.cat([prompt_ids, torch.tensor([ids[:common]], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            best = self.model(context).logits[0, -1].log_softmax(-1).topk(2).values
        return bool(best[0] - best[1] < TIE)


async def test_sixteen_streams_at_once_equal_generate_alone(house: Any, model_folder: Path) -> None:
    texts = await stream_all(house.base_url, house.key("open"))
    reference = await asyncio.to_thread(Reference, model_folder)
    distinct: set[int] = set()
    for index, (prompt, ours) in enumerate(zip(PROMPTS, texts, strict=True)):
        prompt_ids = reference.prompt_ids(prompt)
        ids = await asyncio.to_thread(reference.generate, prompt_ids, NEW_TOKENS - index)
        distinct.update(ids)
        theirs = reference.text(ids)
        assert ours == theirs or reference.is_tie(prompt_ids, ids, ours), (prompt, ours, theirs)
    assert len(distinct) >= 8 * len(PROMPTS) // 4
