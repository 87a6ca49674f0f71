"""Logits of given tokens, not chosen ones: through the engine's forward and transformers'."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from one4all_lc.base.lora import Adapter, Mixture
from one4all_lc.engine.decoding import Decoder, RowInput
from one4all_lc.training.batches import answer_loss, collate
from one4all_lc.training.data import Example


def decoded(
    decoder: Decoder,
    examples: Sequence[Example],
    mixture: Mixture = (),
    adapters: Mapping[str, Adapter] | None = None,
) -> list[Tensor]:
    """Read the prompts, then decode the given answers token by token, all rows at once.

    Returns:
        For each example the logits that its answer's tokens are chosen by, (tokens, vocabulary).
    """
    columns = max(len(example) for example in examples)
    decoder.cache.reserve(len(examples), columns)
    logits: list[list[Tensor]] = [[] for _ in examples]
    for step in range(max(len(example.answer) for example in examples)):
        running = [i for i, example in enumerate(examples) if step < len(example.answer)]
        rows = [_row(i, examples[i], step, mixture) for i in running]
        for i, values in zip(running, decoder.forward(rows, adapters or {}), strict=True):
            logits[i].append(values.float())
    return [torch.stack(values) for values in logits]


def _row(slot: int, example: Example, step: int, mixture: Mixture) -> RowInput:
    """Return the row whose logits choose the answer's token `step`."""
    if not step:
        return RowInput(slot, example.prompt, 0, mixture, decodes=False)
    token = example.answer[step - 1 : step]
    return RowInput(slot, token, len(example.prompt) + step - 1, mixture, decodes=True)


def decoded_perplexity(
    decoder: Decoder,
    examples: Sequence[Example],
    mixture: Mixture,
    adapters: Mapping[str, Adapter],
    rows: int,
) -> float:
    """Return the perplexity of the answers' tokens, so many rows at once."""
    loss = 0.0
    for batch in batches(examples, rows):
        for example, logits in zip(batch, decoded(decoder, batch, mixture, adapters), strict=True):
            wanted = torch.tensor(example.answer)
            loss += float(functional.cross_entropy(logits, wanted, reduction="sum"))
    return math.exp(loss / sum(len(example.answer) for example in examples))


@torch.inference_mode()
def read_perplexity(model: torch.nn.Module, examples: Sequence[Example], rows: int) -> float:
    """Return the same of a model of transformers or PEFT, which reads prompt and answer at once."""
    loss = 0.0
    for batch in batches(examples, rows):
        loss += float(answer_loss(model, collate(batch)))
    return math.exp(loss / sum(len(example.answer) for example in examples))


def batches(examples: Sequence[Example], rows: int) -> Iterator[list[Example]]:
    """Cut examples into batches of like length."""
    ordered = sorted(examples, key=len)
    for start in range(0, len(ordered), rows):
        yield ordered[start : start + rows]


@torch.inference_mode()
def read(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of all tokens, read at once; tokens and logits by rows."""
    logits: Tensor = model(input_ids=tokens).logits
    return logits.float()


@torch.inference_mode()
def stepped(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Return the same with one token of every row at a time, as transformers decodes."""
    logits, cache = [], None
    for column in range(tokens.shape[1]):
        step = tokens[:, column : column + 1]
        output = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[:, -1].float())
    return torch.stack(logits, 1)


def relative_error(logits: Tensor, exact: Tensor) -> float:
    """Return how far logits are from exact ones, as a share of those."""
    return float((logits - exact).norm() / exact.norm())
