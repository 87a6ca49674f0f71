"""Any encoder that AutoModel loads can be the base; each equals PEFT's own forward."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from one4all_lc.base.heads import Head
from one4all_lc.base.loading import SharedBase, describe
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.encoding import TextRow
from one4all_lc.engine.texts import TextRequest
from one4all_lc.experts.text.reading import Tokenizing
from one4all_lc.folder import read_expert
from one4all_lc.training.qlora import train_expert
from one4all_lc.training.recipe import About, Recipe
from tests.encoders import peft_logits
from tests.experts import write_expert

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
    "max_position_embeddings": 40,
}
ARCHITECTURES = {
    "bert": {},
    "camembert": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4},
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
LOAD = {"quantization": "none", "dtype": torch.float32, "shared": False}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    """A tiny checkpoint with random weights."""
    return write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def write_checkpoint(kind, out):
    """Write a tiny checkpoint of an architecture, with a tokenizer of letters; return its path."""
    torch.manual_seed(0)
    given = SMALL | ARCHITECTURES[kind]
    if kind == "distilbert":
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ):
            del given[name]
    config = AutoConfig.for_model(kind, **given)
    model = AutoModel.from_config(config)
    for parameter in model.parameters():  # the usual ones are so small that nothing would differ
        if parameter.dim() == 2:
            parameter.data *= 4
    model.save_pretrained(out)
    tokenizer_for(kind).save_pretrained(out)
    return str(out)


def tokenizer_for(kind):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    typed = kind == "bert"
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if typed else "[CLS] $A [SEP] [SEP] $B [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, ends)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=names,
    )


def rows_of(base, experts):
    """Texts and pairs of several lengths, for two experts in turn."""
    tokenizing = Tokenizing.of(base)
    rows = []
    for i, length in enumerate((2, 30, 7, 12)):
        text = tokenizing.tokens(" ".join("abcdefghij"[n % 10] for n in range(length)))
        other = tokenizing.tokens("x y z") if i % 2 else None
        (window,) = tokenizing.windows(text, before=other)
        rows += [TextRow(window.tokens, expert, window.types) for expert in experts]
    return rows


def check_mixed(base, checkpoint, experts):
    """Two experts in one batch, each row as PEFT computes it alone."""
    rows = rows_of(base, experts)
    engine = EncoderEngine.of(base)
    for expert in experts:
        engine.submit([TextRequest(rows_of(base, [expert])[0])])[0].result()
    steps = engine.stats().steps
    found = [handle.result() for handle in engine.submit([TextRequest(row) for row in rows])]
    assert engine.stats().steps == steps + 1
    engine.close()
    model = SharedBase.load(checkpoint, **LOAD).model
    for row, logits in zip(rows, found, strict=True):
        expected = peft_logits(model, row.expert, row.tokens, row.types)
        assert (logits - expected).abs().max() < 1e-3
    first, second = (found[i].flatten()[:2] for i in (0, 1))
    assert (first - second).abs().max() > 1e-2, "the experts must differ for the test to count"


def test_two_experts_in_one_batch_equal_peft(checkpoint, tmp_path):
    base = SharedBase.load(checkpoint, **LOAD)
    assert base.encodes
    assert base.context_length >= 38
    engine = EncoderEngine.of(base)
    assert engine._encoder.pads == ("modernbert" in checkpoint), "its layers see windows"
    engine.close()
    kinds = {
        "one": {"kind": "classify", "labels": ("no", "yes")},
        "two": {"kind": "tag", "labels": ("O", "B-X", "I-X"), "dense": True},
    }
    experts = [
        read_expert(
            write_expert(tmp_path / name, base.facts, seed=i, strength=0.3, **kind), base.facts
        )
        for i, (name, kind) in enumerate(kinds.items())
    ]
    check_mixed(base, checkpoint, experts)


def test_it_is_described_as_it_is_loaded(checkpoint):
    """An expert would be checked against another base than the one that carries it."""
    base = SharedBase.load(checkpoint, **LOAD)
    assert describe(checkpoint) == base.facts
    assert not any("pooler" in name for name in base.facts.linears)


def test_it_trains_a_step_is_saved_loaded_and_served(checkpoint, tmp_path):
    """What was trained is what is served, beside another expert, and what PEFT computes."""
    rows = [
        {"text": f"{x} {y} z", "tags": f"B-X {tag} O"}
        for x in "abcde"
        for y, tag in (("f", "I-X"), ("g", "O"))
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    made = train_expert(
        tmp_path / "made",
        [data],
        about=About(description="Made by a test.", kind="tag"),
        recipe=Recipe(
            steps=1,
            rank=4,
            batch_tokens=64,
            max_tokens=32,
            learning_rate=1e-2,
            quantization="none",
        ),
        base=checkpoint,
    )
    served = SharedBase.load(checkpoint, **LOAD)
    other = write_expert(tmp_path / "other", served.facts, seed=5, kind="extract", strength=0.3)
    experts = [read_expert(path, served.facts) for path in (made.folder, other)]
    assert experts[0].factors.keys() == set(served.facts.linears)
    first = load_file(made.weights_file)
    assert all(first[name].any() for name in first if "lora_B" in name), "every layer has learned"
    check_mixed(served, checkpoint, experts)
    labels = ("O", "B-X", "I-X")
    assert made.card.labels == labels
    again = Head.load(made.folder, "tag", labels, "mean")
    for name, tensor in load_file(made.head_file).items():
        assert torch.equal(again.named()[name], tensor)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_it_is_quantized_like_a_decoder(checkpoint, tmp_path, quantization):
    """A large encoder would not fit where it should."""
    load = {"quantization": quantization, "dtype": torch.float32, "shared": False}
    base = SharedBase.load(checkpoint, **load)
    assert base.quantization == quantization
    assert base.facts == describe(checkpoint)
    plain = SharedBase.load(checkpoint, **LOAD)
    assert base.memory_bytes < 0.8 * plain.memory_bytes
    expert = read_expert(write_expert(tmp_path / "e", base.facts, kind="extract"), base.facts)
    reference = SharedBase.load(checkpoint, **load).model
    (row, *_) = rows_of(base, [expert])
    engine = EncoderEngine.of(base)
    found = engine.submit([TextRequest(row)])[0].result()
    engine.close()
    expected = peft_logits(reference, expert, row.tokens, row.types)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_auto_leaves_an_encoder_unquantized(checkpoint):
    assert SharedBase.load(checkpoint, shared=False).quantization == "none"
