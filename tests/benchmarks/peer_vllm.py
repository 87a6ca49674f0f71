"""vLLM's process: the base in bfloat16 and the experts, in vLLM's own batch."""

from typing import Any

from tests.benchmarks.peer_protocol import Answer, serve


def prepare(settings: dict[str, Any]) -> Answer:
    """Load the base of `settings["base"]` and the adapters of `settings["adapters"]`."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    adapters = settings["adapters"]
    llm = LLM(
        model=settings["base"],
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=32,
        enable_lora=True,
        max_lora_rank=16,
        # One slot more than adapters: base rows wrongly take what is in the last one.
        max_loras=len(adapters) + 1,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,  # no prompt comes twice
    )
    loras = [
        LoRARequest(f"expert{number}", number + 1, folder) for number, folder in enumerate(adapters)
    ]

    def answer(prompts: list[list[int]], rows: list[int | None], tokens: int) -> list[int]:
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False),
            lora_request=[None if row is None else loras[row] for row in rows],
            use_tqdm=False,
        )
        return [len(output.outputs[0].token_ids) for output in outputs]

    return answer


if __name__ == "__main__":  # vLLM starts processes that import this module again
    serve(prepare)
