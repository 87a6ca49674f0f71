"""Token ids to text as they come, ending exactly before a stop text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextStream:
    """The text of one answer.

    Text is handed out as soon as it is certain: not while its last character lacks bytes, nor
    while its end could be the beginning of a stop text.

    Args:
        tokenizer: The base's tokenizer.
        stop: The texts that end the answer.
        special_tokens: Whether the tokenizer's special tokens stand in the text.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop: Sequence[str],
        *,
        special_tokens: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._skipping = not special_tokens
        self._decoding = DecodeStream(skip_special_tokens=self._skipping)
        self._tokens: list[int] = []
        self._decoded = ""
        self._given = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that has become certain."""
        self._tokens.append(token)
        text = self._decoding.step(self._tokenizer.backend_tokenizer, token)
        self._decoded += text or ""
        return self._release(final=False)

    def finish(self) -> str:
        """Return what is left, an incomplete character included as the tokenizer decodes it."""
        if not self.stopped:
            whole = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skipping)
            if whole.startswith(self._decoded):
                self._decoded = whole
        return self._release(final=True)

    @property
    def text(self) -> str:
        """All that was handed out."""
        return self._decoded[: self._given]

    def _release(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        start = self._given
        # A stop text may begin in what is still held back, never in what was handed out.
        found = [at for stop in self._stop if (at := self._decoded.find(stop, start)) >= 0]
        if found:
            self.stopped = True
            self._given = min(found)
        elif final:
            self._given = len(self._decoded)
        else:
            self._given = len(self._decoded) - self._held_back()
        return self._decoded[start : self._given]

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = max((len(stop) for stop in self._stop), default=0)
        unsent = len(self._decoded) - self._given
        for length in range(min(longest - 1, unsent), 0, -1):
            end = self._decoded[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
