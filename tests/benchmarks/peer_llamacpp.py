"""llama.cpp's process: the Q4_1 file of the base, one stream, no adapters."""

import itertools
from typing import Any

from tests.benchmarks.peer_protocol import Answer, serve


def prepare(settings: dict[str, Any]) -> Answer:
    """Load the GGUF file of `settings["model"]` with `settings["threads"]` threads."""
    from llama_cpp import Llama

    threads = settings["threads"]
    model = Llama(
        settings["model"],
        n_ctx=1024,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
        verbose=False,
    )

    def one(prompt: list[int], tokens: int) -> int:
        model.reset()  # else it would keep what two prompts begin with
        answer = model.generate(prompt, temp=0.0)  # goes on after an end token
        return sum(1 for _ in itertools.islice(answer, tokens))

    def answer(prompts: list[list[int]], rows: list[int | None], tokens: int) -> list[int]:
        return [one(prompt, tokens) for prompt in prompts]

    return answer


if __name__ == "__main__":
    serve(prepare)
