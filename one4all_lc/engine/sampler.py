"""Choosing the next token of one row, by transformers' own processors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from one4all_lc.sampling import Sampling


class Sampler:
    """Chooses the tokens of one request, as `generate` would with the same settings.

    Args:
        sampling: The request's settings.
        device: Where the logits are.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._draws = sampling.temperature > 0
        self._generator: torch.Generator | None = None
        if sampling.seed is not None:
            self._generator = torch.Generator(device).manual_seed(sampling.seed)
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self._draws:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor, prompt: Sequence[int], tokens: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: Shape (vocabulary,).
            prompt: The prompt, which counts as said for the repetition penalty.
            tokens: The tokens chosen so far.

        Raises:
            FloatingPointError: The logits are not finite: the row's adapter or cache is broken.
        """
        scores = logits[None].float()
        if not bool(torch.isfinite(scores.max())):
            msg = "The model's logits are not finite: its weights or an adapter's are broken."
            raise FloatingPointError(msg)
        if self._processors:
            seen = torch.tensor([[*prompt, *tokens]], device=scores.device)
            scores = self._processors(seen, scores)
        if not self._draws:
            return int(scores.argmax())
        probabilities = torch.softmax(scores, -1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
