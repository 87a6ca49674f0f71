"""Any decoder that AutoModelForCausalLM loads can be the base, sliding windows included."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from one4all_lc.base.embedded import resolve
from one4all_lc.base.loading import DEFAULT_BASE, SharedBase, describe
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.folder import read_expert
from one4all_lc.sampling import Sampling

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "vocab_size": 49152,
}
ARCHITECTURES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "phi": {"num_key_value_heads": 4},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding")],
    },
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    """A tiny random checkpoint with the embedded base's tokenizer."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **(SMALL | ARCHITECTURES[request.param]))
    folder = tmp_path_factory.mktemp(request.param)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # far from the near ties of a fresh initialisation
        parameter.data *= 3 if parameter.dim() > 1 else 1
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve(DEFAULT_BASE)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_it_loads_quantized_and_is_known_without_its_weights(checkpoint, quantization):
    base = SharedBase.load(checkpoint, quantization=quantization, shared=False)
    assert base.facts == describe(checkpoint)
    assert base.memory_bytes > 0
    handle = Engine.of(base).submit(Request((5, 6, 7), (), Sampling(max_tokens=3)))
    assert len(handle.result().tokens) == 3
    Engine.of(base).close()


def test_answers_with_and_without_an_adapter_equal_generate(checkpoint, make_expert):
    """Prompts of several lengths in one batch, past the sliding window, with a mixed adapter."""
    from peft import PeftModel

    load = {"quantization": "none", "dtype": torch.float32, "shared": False}
    base = SharedBase.load(checkpoint, **load)
    folder = make_expert("e", base.facts, rank=4, strength=0.3)
    expert = read_expert(folder, base.facts)
    plain = SharedBase.load(checkpoint, **load).model
    tuned = PeftModel.from_pretrained(SharedBase.load(checkpoint, **load).model, folder).eval()
    prompts = [tuple(range(10, 10 + length)) for length in (3, 30, 11)]
    engine = Engine.of(base)
    settings = Sampling(max_tokens=16)
    handles = [
        engine.submit(Request(prompt, experts, settings))
        for prompt in prompts
        for experts in ((), ((expert, 1.0),))
    ]
    answers = [handle.result().tokens for handle in handles]
    expected = []
    for prompt in prompts:
        for model in (plain, tuned):
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=16,
                    do_sample=False,
                )
            expected.append(tuple(output[0, len(prompt) :].tolist()))
    assert answers == expected
    assert answers[0] != answers[1], "the adapter must matter for the test to count"
    engine.close()
