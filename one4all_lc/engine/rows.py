"""Everybody's next tokens: one where an answer has begun, else a chunk of the prompt."""

from collections.abc import Callable, Iterable, Sequence

from one4all_lc.engine.attention import TILE
from one4all_lc.engine.decoding import RowInput
from one4all_lc.engine.scheduler import Job

PREFILL_TOKENS = 4 * TILE
"""Tokens of prompts in one step, so that those who decode wait for no more; whole tiles."""

ALONE = 4
"""So many times as many tokens of prompts are read in one step while nobody decodes."""


def next_rows(
    jobs: Sequence[Job], begin: Callable[[Job], None]
) -> tuple[list[Job], list[RowInput]]:
    """Return the rows of the next forward, and whose they are.

    Of prompts there are `PREFILL_TOKENS` in all, `ALONE` times as many while nobody decodes, cut
    between tiles: in order of arrival, those of one mixture after the first of it, since they share
    its adapters.

    Args:
        jobs: Those that hold a slot.
        begin: Called before a prompt's first chunk is cut; it may say that some is known already.
    """
    chosen = [job for job in jobs if job.tokens]
    rows = [_decoding(job) for job in chosen]
    left = PREFILL_TOKENS * (1 if chosen else ALONE)
    for job in _in_reading_order(job for job in jobs if not job.tokens):
        if left < TILE:
            break
        if not job.prefilled:
            begin(job)
        row = _reading(job, left)
        left -= len(row.tokens)
        chosen.append(job)
        rows.append(row)
    return chosen, rows


def _decoding(job: Job) -> RowInput:
    start = len(job.request.prompt) + len(job.tokens) - 1
    return RowInput(job.slot, job.tokens[-1:], start, job.request.mixture, decodes=True)


def _reading(job: Job, most: int) -> RowInput:
    prompt, start = job.request.prompt, job.prefilled
    chunk = prompt[start : start + most]
    if start + len(chunk) < len(prompt):
        chunk = chunk[: len(chunk) // TILE * TILE]
    return RowInput(job.slot, chunk, start, job.request.mixture, decodes=False)


def _in_reading_order(jobs: Iterable[Job]) -> list[Job]:
    by_arrival = sorted(jobs, key=lambda job: job.arrival)
    firsts: dict[object, int] = {}
    for job in by_arrival:
        firsts.setdefault(job.request.mixture, job.arrival)
    return sorted(by_arrival, key=lambda job: firsts[job.request.mixture])
