"""The table of recommended bases: what it says of memory is what they take."""

import json

import pytest
import torch

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.memory import RANK, TRAINED_ROWS, TRAINED_TOKENS, memory_of, saved_bytes
from one4all_lc.base.recommended import RECOMMENDED, rows
from one4all_lc.errors import InvalidInput

EMBEDDED = {"intfloat/multilingual-e5-small": True, "HuggingFaceTB/SmolLM2-135M-Instruct": False}


@pytest.fixture(scope="module")
def table():
    return {row.id: row for row in rows()}


@pytest.mark.parametrize("base", EMBEDDED)
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_computed_memory_is_what_a_loaded_base_takes(table, base, quantization):
    """A base that is said to fit would not."""
    loaded = SharedBase.load(base, quantization=quantization, dtype=torch.bfloat16, shared=False)
    computed = getattr(table[base].memory, quantization)
    assert computed == pytest.approx(loaded.memory_bytes, rel=0.1)
    assert table[base].at_hand
    if quantization == "none":
        assert table[base].memory.parameters == sum(p.numel() for p in loaded.model.parameters())


@pytest.mark.parametrize("base", EMBEDDED)
def test_computed_memory_for_training_is_what_a_step_keeps(table, base):
    from peft import LoraConfig, get_peft_model

    loaded = SharedBase.load(base, quantization="nf4", dtype=torch.bfloat16, shared=False)
    tuned = get_peft_model(loaded.model, LoraConfig(r=RANK, target_modules="all-linear")).train()
    for name, module in tuned.named_modules():
        if name.endswith("attention.self.dropout"):  # no fused attention on a CPU computes it
            module.p = 0.0
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    ids = torch.zeros(TRAINED_ROWS, TRAINED_TOKENS, dtype=torch.long)
    saved = saved_bytes(tuned, ids, encodes=EMBEDDED[base])
    states = 3 * sum(parameter.nbytes for parameter in trained)  # gradients, two moments
    measured = tuned.get_base_model().get_memory_footprint() + states + saved
    assert table[base].memory.training == pytest.approx(measured, rel=0.1)


def test_parameters_are_what_their_makers_say(table):
    said = {
        "HooshvareLab/bert-base-parsbert-uncased": 163,
        "google-bert/bert-base-multilingual-cased": 178,
        "almanach/camembert-base": 111,
        "HuggingFaceTB/SmolLM2-360M-Instruct": 362,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711,
        "Qwen/Qwen3-0.6B": 596,
        "Qwen/Qwen3-1.7B": 1721,
        "Qwen/Qwen3-4B": 4022,
    }
    for base, millions in said.items():
        # Encoders are counted without the pooler, of 0.6 million, which nothing here uses.
        assert table[base].memory.parameters / 1e6 == pytest.approx(millions, abs=1)


def test_a_base_without_a_public_id_says_so_and_takes_a_path(table, tmp_path):
    assert table[None].memory is None
    assert "no public id" in table[None].remark
    with pytest.raises(InvalidInput, match=r"config\.json"):
        rows(str(tmp_path))
    config = {"model_type": "bert", "vocab_size": 100, "hidden_size": 24, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = next(row for row in rows(str(tmp_path)) if row.name == "SaadiBERT")
    assert found.id == str(tmp_path)
    assert found.at_hand
    assert found.memory.parameters > 1000


def test_every_quantization_is_smaller_than_the_one_before(table):
    for item in RECOMMENDED:
        memory = table[item.id].memory
        if memory is not None:
            assert memory.nf4 < memory.int8 < memory.none
            assert memory.training > memory.nf4


def test_a_configuration_alone_is_enough():
    from transformers import BertConfig

    config = BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
    assert memory_of(config, encodes=True).parameters > 64 * 30522
