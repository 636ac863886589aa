"""The tokenizer and chat template of one model folder, through Transformers' fast tokenizer.

Everything here may take long: call it in a thread, never on the event loop.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from sidecar.tokenizer import bound
from sidecar.tokenizer.control import ControlToken, ControlTokens, Disguise
from sidecar.tokenizer.messages import PLAIN, Message, Rendering
from sidecar.tokenizer.spelling import Spelling
from sidecar.tokenizer.template import ChatTemplate, client_texts
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import bad_request
from sidecar.wire.internal import TokenBound


class TokenizerUnusableError(Exception):
    """The folder has no fast tokenizer that can be loaded without code from the model."""


class ModelTokenizer:
    """Encodes chats and texts, and makes detokenizers. Immutable after construction, safe from several threads."""

    def __init__(self, folder: Path) -> None:
        # Transformers takes seconds to import; who only lists models need not wait for it.
        from transformers import AutoTokenizer  # noqa: PLC0415

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError) as exc:
            raise TokenizerUnusableError(f"{folder}: the tokenizer cannot be loaded: {exc}") from exc
        if not tokenizer.is_fast:
            raise TokenizerUnusableError(f"{folder}: there is no fast tokenizer (tokenizer.json)")
        self._folder = folder
        self._backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        # A tokenizer may have been saved to pad or to cut what it encodes.
        self._backend.no_padding()
        self._backend.no_truncation()
        specials = [
            ControlToken(number, token.content, token.lstrip, token.rstrip)
            for number, token in sorted(self._backend.get_added_tokens_decoder().items())
            if token.special
        ]
        self._control = ControlTokens(specials)
        self._special_ids = frozenset(token.id for token in specials)
        self._spelling = Spelling(self._backend)
        # A second tokenizer for which special tokens are words like any other.
        self._plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        self._plain.encode_special_tokens = True
        self._template = ChatTemplate(tokenizer, frozenset(token.text for token in specials))
        self._stop_ids = _stop_ids(folder, tokenizer.eos_token_id)

    @property
    def has_chat_template(self) -> bool:
        return self._template.exists

    @property
    def template_source(self) -> str:
        """The chat template as it is written; empty without one."""
        return self._template.source

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template is given tools; else they are described in words."""
        return self._template.knows_tools

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end an answer, by the model's generation config, its config and its tokenizer."""
        return self._stop_ids

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """A completion's prompt: special tokens written in it are special, and the tokenizer adds its own."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_chat(self, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> list[int]:
        """The template's rendering of a chat. Raises ApiError 400 if the template refuses it.

        It ends ready for the answer, or after the last message, or within that one, which is then to be continued: not
        two of these at once. The ids are those of Transformers' `apply_chat_template`, except where a client's text
        holds control tokens.
        """
        if not self.has_chat_template:
            raise bad_request("This model has no chat template; use /v1/completions.", param="messages")
        disguise = Disguise(self._control, client_texts(messages, rendering))
        rendered = self._template.render(messages, rendering, disguise.put_on)
        if not disguise.used:
            return self.encode_text(rendered, add_special_tokens=False)
        return [token for part in self._control.split(rendered) for token in self._encode_part(part, disguise)]

    def detokenizer(
        self, before: Sequence[int] = (), *, specials: bool = False, markers: Sequence[str] = ()
    ) -> Detokenizer:
        """For what follows the tokens `before`. `specials`: special tokens have text; `markers`: these have always."""
        shown = {self._backend.token_to_id(marker) for marker in markers}
        return Detokenizer(self.decode, frozenset() if specials else self._special_ids - shown, before)

    def text_offsets(self, text: str) -> list[int]:
        """Where in a completion's prompt each of its tokens begins, in characters.

        White space before a word is the word's. A token that the tokenizer adds begins where the one before it ends.
        """
        offsets: list[int] = []
        last = 0
        for start, end in self._backend.encode(text).offsets:
            offsets.append(min(start, last) if end > start else last)
            last = max(last, end)
        return offsets

    def decode(self, ids: list[int]) -> str:
        """The text of tokens; control tokens are spelt out, and a number that is no token has no text.

        Of the tokens of a text it is that text, unless the tokenizer normalises (byte-level ones seldom do).
        """
        return self._backend.decode(ids, skip_special_tokens=False)

    def token_strs(self, ids: list[int]) -> list[str]:
        """The tokens as the vocabulary writes them, such as `Ġcat` for " cat"."""
        return [self._backend.id_to_token(token) or "" for token in ids]

    def decode_text(self, ids: list[int]) -> tuple[str, list[int]]:
        """The text of tokens, and where in it each begins, in characters; control tokens are spelt out."""
        detokenizer = Detokenizer(self.decode, frozenset())
        pieces: list[str] = []
        offsets: list[int] = []
        length = 0
        for token in ids:
            offsets.append(length)
            pieces.append(detokenizer.feed(token))
            length += len(pieces[-1])
        pieces.append(detokenizer.flush())
        return "".join(pieces), offsets

    def spell(self, token: int, *, begins: bool = False) -> bytes:
        """The bytes of one token's text, which may be part of a character. `begins`: the text begins with it."""
        return self._spelling.bytes_of(token, begins=begins)

    def vocabulary(self, size: int, markers: Sequence[str] = ()) -> list[bytes]:
        """The bytes of each token of a model with `size` of them; empty for those that are no text, nor `markers`."""
        silent = self._special_ids - {self._backend.token_to_id(marker) for marker in markers}
        return [b"" if token in silent else self._spelling.bytes_of(token) for token in range(size)]

    def bound(self) -> TokenBound | None:
        """An upper bound from bytes alone, or None where there is none or it cannot be told."""
        if not bound.is_byte_level(self._backend.to_str()):
            return None

        def render(messages: tuple[Message, ...]) -> str | None:
            with contextlib.suppress(Exception):
                return self._template.render(messages, PLAIN, str)
            return None

        def overhead(rendered: str) -> int:
            parts = self._control.split(rendered)
            return sum(1 if isinstance(part, int) else len(part.encode()) for part in parts)

        if not self.has_chat_template:
            return TokenBound(per_request=len(self.encode_text("")), per_message=0)
        return bound.measure(render, overhead, len(self.encode_text("")))

    def _encode_part(self, part: str | int, disguise: Disguise) -> list[int]:
        if isinstance(part, int):
            return [part]
        ids: list[int] = self._plain.encode(disguise.take_off(part), add_special_tokens=False).ids
        return ids


def _stop_ids(folder: Path, tokenizer_eos: int | None) -> list[int]:
    found = {tokenizer_eos} if tokenizer_eos is not None else set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        eos = json.loads(path.read_text("utf-8")).get("eos_token_id")
        if isinstance(eos, int):
            found.add(eos)
        elif isinstance(eos, list):
            found.update(number for number in eos if isinstance(number, int))
    return sorted(found)
