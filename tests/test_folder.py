"""Expert folders: whatever is wrong with one must be said before it reaches a running model."""

import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from one4all_lc.card import CARD_FILE, BaseFacts, BaseFingerprint, ExpertCard
from one4all_lc.errors import UnfitExpert
from one4all_lc.folder import (
    CONFIG_FILE,
    EXEMPLARS_FILE,
    UNSUPPORTED,
    WEIGHTS_FILE,
    Exemplar,
    LoraFactor,
    read_exemplars,
    read_expert,
    sha256_of,
    write_exemplars,
)

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
FINGERPRINT = BaseFingerprint("LlamaForCausalLM", "shapes", "tokenizer", "template")
BASE = BaseFacts("tiny/base", FINGERPRINT, {Q: (6, 4), UP: (8, 4)})
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "init_lora_weights": True}

Change = Callable[[Path], object]


def key(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def weights(rank: int = 2) -> dict[str, np.ndarray]:
    tensors = {}
    for module, (out_features, in_features) in BASE.linears.items():
        tensors[key(module, "A")] = np.linspace(-1, 1, rank * in_features, dtype="f4")
        tensors[key(module, "A")].shape = (rank, in_features)
        tensors[key(module, "B")] = np.full((out_features, rank), 0.5, "f4")
    return tensors


def build(root: Path, name: str = "law", title: str = "Law") -> Path:
    """Write a folder that nothing is wrong with."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(save(weights(), metadata={"format": "pt"}))
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG))
    write_exemplars(folder, [Exemplar("What is a tort?"), Exemplar("قرارداد چیست؟", "fa")])
    ExpertCard(
        name=name,
        title=title,
        description="Questions on law.",
        base=BASE.id,
        fingerprint=FINGERPRINT,
        weights_sha256=sha256_of(folder / WEIGHTS_FILE),
        generation={"max_tokens": 96, "temperature": 0, "stop": ["\n\n"]},
        metrics={"perplexity": {"base": 9.5, "expert": 3}},
    ).write(folder)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What can be changed in a folder. Changes of the weights sign them anew, so that the hash is right.


def edit(file: str, **values: object) -> Change:
    """Set fields of a JSON file; `...` removes one."""

    def change(folder: Path) -> None:
        present = json.loads((folder / file).read_text()) | values
        kept = {name: value for name, value in present.items() if value is not ...}
        (folder / file).write_text(json.dumps(kept))

    return change


def card(**values: object) -> Change:
    return edit(CARD_FILE, **values)


def config(**values: object) -> Change:
    return edit(CONFIG_FILE, **values)


def fingerprint(**values: object) -> Change:
    whole = {"architecture": "LlamaForCausalLM", "shapes": "shapes", "tokenizer": "tokenizer"}
    whole |= {"chat_template": "template"} | values
    return card(fingerprint={name: value for name, value in whole.items() if value is not ...})


def text(file: str, content: str | bytes) -> Change:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / file).write_bytes(raw)


def replaced(file: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        present = (folder / file).read_text()
        assert old in present
        (folder / file).write_text(present.replace(old, new, 1))

    return change


def signed(content: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        path = folder / WEIGHTS_FILE
        path.write_bytes(content(path.read_bytes()))
        card(weights_sha256=sha256_of(path))(folder)

    return change


def tensors(**values: object) -> Change:
    """Replace tensors of `q_proj` by A and B, others by name; None takes one away."""
    named = {{"A": key(Q, "A"), "B": key(Q, "B")}.get(name, name): v for name, v in values.items()}
    whole = {name: value for name, value in (weights() | named).items() if value is not None}
    return signed(lambda _: save(whole))


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def with_value(value: float, dtype: str, side: str = "B") -> Change:
    tensor = weights()[key(Q, side)].astype(dtype)
    tensor[1, 1] = value
    return tensors(**{side: tensor})


def safetensors(entries: dict[str, tuple[str, list[object], bytes]]) -> bytes:
    """Write the format by hand, since numpy has no bfloat16."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in entries.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return (len(header) if size is None else size).to_bytes(8, "little") + header + data


def bf16(values: np.ndarray) -> bytes:
    return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


def in_bf16(name: str = "", value: float = 0.0) -> Change:
    """Store every tensor in bfloat16, with `value` in one of them."""
    whole = weights()
    if name:
        whole[name][0, 0] = value
    entries = {name: ("BF16", list(t.shape), bf16(t)) for name, t in whole.items()}
    return signed(lambda _: safetensors(entries))


def header_edit(change: Callable[[dict[str, dict[str, list[int]]]], object]) -> Change:
    """Let the header of the weights lie."""

    def lie(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        return framed(json.dumps(header).encode(), content[8 + size :])

    return signed(lie)


def entry(field: str, value: object) -> Change:
    return header_edit(lambda header: header[key(Q, "B")].update({field: value}))


DEEP = "[" * 100_000 + "]" * 100_000
HUGE = '{"a":' * 100_000 + "1" + "}" * 100_000
ONES = np.ones((2, 4), "f4")

WEIGHTS = (
    {
        "a pickle": (text("adapter_model.bin", b"\x80"), "pickle"),
        "a pickle in capitals": (text("ADAPTER_MODEL.BIN", b"\x80"), "pickle"),
        "a pickled optimizer": (text("optimizer.pt", b"\x80"), "pickle"),
        "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "missing"),
        "only pickled weights": (
            lambda folder: (folder / WEIGHTS_FILE).rename(folder / "adapter_model.pth"),
            "pickle",
        ),
        "another hash": (card(weights_sha256="0" * 64), "hashes to"),
        "one bit flipped": (
            lambda folder: (folder / WEIGHTS_FILE).write_bytes(
                (content := (folder / WEIGHTS_FILE).read_bytes())[:-1] + bytes([content[-1] ^ 1])
            ),
            "hashes to",
        ),
        "no tensor": (signed(lambda _: save({})), "no tensor"),
        "A without B": (tensors(B=None), "lora_A without its partner"),
        "B without A": (tensors(A=None), "lora_B without its partner"),
        "A of three axes": (tensors(A=ONES[None]), "two axes"),
        "A of one axis": (tensors(A=ONES[0]), "two axes"),
        "A and B of other ranks": (tensors(A=np.ones((3, 4), "f4")), "rank 3 (A) and 2 (B)"),
        "transposed A": (tensors(A=ONES.T.copy()), "rank 4 (A)"),
        "wrong in features": (tensors(A=np.ones((2, 5), "f4")), "(6, 5)"),
        "wrong out features": (tensors(B=np.ones((7, 2), "f4")), "(7, 4)"),
        "rank 0": (
            both(
                tensors(A=np.ones((0, 4), "f4"), B=np.ones((6, 0), "f4")),
                config(rank_pattern={"q_proj": 0}),
            ),
            "rank",
        ),
        "no rows in A": (tensors(A=np.ones((0, 4), "f4")), "two axes"),
        "a module that the base lacks": (
            tensors(
                **{
                    key("model.layers.9.q_proj", side): t
                    for side, t in (("A", ONES), ("B", ONES.T.copy()))
                }
            ),
            "match no linear layer",
        ),
        "a DoRA tensor": (
            tensors(**{f"base_model.model.{Q}.lora_magnitude_vector": ONES[0]}),
            "not a LoRA A or B",
        ),
        "a bias tensor": (tensors(**{f"base_model.model.{Q}.lora_B.bias": ONES[0]}), "not a LoRA"),
        "a saved module": (tensors(**{"base_model.model.lm_head.weight": ONES}), "not a LoRA"),
        "an embedding's LoRA": (
            tensors(**{"base_model.model.model.embed_tokens.lora_embedding_A": ONES}),
            "not a LoRA",
        ),
        "an adapter's name in the key": (
            tensors(**{f"base_model.model.{Q}.lora_A.default.weight": ONES}),
            "not a LoRA",
        ),
        "a line break in a key": (tensors(**{"evil\nname": ONES}), "not a LoRA"),
        "whole numbers": (tensors(A=ONES.astype("i1")), "type I8"),
        "truth values": (tensors(A=ONES.astype("?")), "type BOOL"),
        "more than float32 holds": (with_value(1e300, "f8"), "beyond 65504"),
        "more than float16 holds": (with_value(-1e30, "f4", "A"), "beyond 65504"),
        "more than float16 holds, BF16": (in_bf16(key(UP, "B"), 1e38), "beyond 65504"),
    }
    | {
        f"{value} in {dtype} of {side}": (with_value(value, code, side), "NaN, infinity")
        for value in (math.nan, math.inf, -math.inf)
        for dtype, code in (("F16", "f2"), ("F32", "f4"), ("F64", "f8"))
        for side in "AB"
    }
    | {
        f"{value} in BF16": (in_bf16(key(UP, "A"), value), "NaN, infinity")
        for value in (math.nan, math.inf, -math.inf)
    }
)

SAFETENSORS = {
    f"cut after {length} bytes": (
        signed(lambda content, n=length: content[:n]),
        "whole safetensors",
    )
    for length in (0, 4, 8, 40, -1, -40)
} | {
    "bytes beyond the tensors": (signed(lambda content: content + b"\0"), "whole safetensors"),
    "negative offsets": (entry("data_offsets", [-48, 0]), "whole safetensors"),
    "overlapping tensors": (
        header_edit(
            lambda header: header[key(UP, "A")].update(
                data_offsets=list(header[key(Q, "A")]["data_offsets"])
            )
        ),
        "whole safetensors",
    ),
    "offsets beyond the file": (entry("data_offsets", [0, 2**40]), "whole safetensors"),
    "offsets backwards": (entry("data_offsets", [48, 0]), "whole safetensors"),
    "offsets in fractions": (entry("data_offsets", [0.0, 48.0]), "whole safetensors"),
    "one offset": (entry("data_offsets", [0]), "whole safetensors"),
    "a shape that overflows": (entry("shape", [2**32, 2**32]), "whole safetensors"),
    "a negative shape": (entry("shape", [-6, -2]), "whole safetensors"),
    "a shape of another size": (entry("shape", [6, 3]), "whole safetensors"),
    "an unknown type": (entry("dtype", "F99"), "whole safetensors"),
    "a type that is a list": (entry("dtype", ["F32"]), "whole safetensors"),
    "no header": (signed(lambda _: framed(b"")), "whole safetensors"),
    "a header of 2**63 bytes": (signed(lambda _: framed(b"{}", size=2**63)), "whole safetensors"),
    "a header that is a list": (signed(lambda _: framed(b"[]")), "whole safetensors"),
    "a header in UTF-16": (signed(lambda _: framed("{}".encode("utf-16"))), "whole safetensors"),
    "a bottomless header": (signed(lambda _: framed(HUGE.encode())), "whole safetensors"),
    "another file": (signed(lambda _: b"version https://git-lfs\n" * 9), "whole safetensors"),
    "a folder": (
        lambda folder: [(folder / WEIGHTS_FILE).unlink(), (folder / WEIGHTS_FILE).mkdir()],
        "missing",
    ),
}

CONFIGS = (
    {
        f"{option} {str(value)[:40]}": (config(**{option: value}), f"sets {option}")
        for option, values in {
            "use_dora": [True],
            "bias": ["all", "lora_only"],
            "lora_bias": [True],
            "modules_to_save": [["lm_head"]],
            "init_lora_weights": ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "mica", {}],
            "fan_in_fan_out": [True],
            "layer_replication": [[[0, 1]]],
            "trainable_token_indices": [[5]],
            "target_parameters": [["experts.w"]],
            "use_qalora": [True],
            "alora_invocation_tokens": [[1, 2]],
            "use_bdlora": [{"nblocks": 2}],
            "arrow_config": [{"top_k": 3}],
            "kasa_config": [{"beta": 1.0}],
            "monteclora_config": [{"num_samples": 2}],
            "rank_pattern": [["q_proj"], "q_proj", 2, {"(": 2}, {"(?i)q_proj": 2}],
            "alpha_pattern": [["q_proj"], {"*": 2}],
        }.items()
        for value in values
    }
    | {
        f"{option} {str(value)[:20]}": (config(**{option: value}), words)
        for option, words, values in (
            ("r", "has rank", [0, -2, 2.0, True, "2", None, ..., [2]]),
            ("r", "config.json says", [1, 4]),
            ("rank_pattern", "has rank", [{"q_proj": 0}, {"q_proj": "2"}, {"nothing": -1}]),
            ("rank_pattern", "config.json says 3", [{"q_proj": 3}, {".*": 3}]),
            ("lora_alpha", "has lora_alpha", ["8", None, ..., True, 1e9, -1e9, 10**400, [8]]),
            ("alpha_pattern", "has lora_alpha", [{"q_proj": "8"}, {"q_proj": None}]),
            ("peft_type", "peft_type", ["IA3", "lora", None, ..., 5]),
        )
        for value in values
    }
    | {
        "alpha NaN": (replaced(CONFIG_FILE, '"lora_alpha": 8', '"lora_alpha": NaN'), "not JSON"),
        "alpha infinite": (
            replaced(CONFIG_FILE, '"lora_alpha": 8', '"lora_alpha": 1e999'),
            "not JSON",
        ),
        "rank said twice": (replaced(CONFIG_FILE, '"r": 2', '"r": 2, "r": 4'), "twice"),
        "no configuration": (lambda folder: (folder / CONFIG_FILE).unlink(), "missing"),
        "an empty configuration": (text(CONFIG_FILE, ""), "readable JSON"),
        "a configuration cut off": (text(CONFIG_FILE, '{"peft_type": "LORA"'), "readable JSON"),
        "a list": (text(CONFIG_FILE, "[]"), "peft_type"),
        "a bottomless configuration": (text(CONFIG_FILE, DEEP), "nested too deeply"),
    }
)

CARDS = (
    {
        f"no {field}": (card(**{field: ...}), f"{field!r} is missing")
        for field in ("name", "title", "description", "base", "fingerprint", "weights_sha256")
    }
    | {
        f"{field} {str(value)[:20]!r}": (card(**{field: value}), words)
        for field, words, values in (
            ("colour", "'colour' is unknown", ["red"]),
            ("title", "'title'", ["", " \n", 5, None, ["Law"]]),
            ("description", "'description'", ["", {}]),
            ("base", "'base'", ["", 1]),
            ("kind", "kind", ["poem", "", 1]),
            ("languages", "list of strings", ["en", [1], {"en": 1}, None]),
            ("labels", "list of strings", ["a", [["a"]]]),
            ("version", "version", [0, -1, 1.0, "1", True, None]),
            ("weights_sha256", "weights_sha256", ["", "0" * 63, "A" * 64, "0" * 64 + "\n", 5]),
            ("training", "'training'", [[], "none"]),
            ("metrics", "'metrics'", [[], 0.5]),
            ("system_prompt", "'system_prompt'", [None, ["x"]]),
            ("fingerprint", "fingerprint", ["x", None, {}, []]),
            ("generation", "'generation'", ["greedy", [], {"max_token": 5}, {"__class__": 1}]),
            ("generation", "max_tokens is", [{"max_tokens": v} for v in ("9", 1.5, True, None)]),
            ("generation", "must be", [{"max_tokens": 0}, {"temperature": -1}, {"stop": [""]}]),
            ("generation", "temperature is", [{"temperature": "hot"}, {"temperature": True}]),
            ("generation", "stop is", [{"stop": "END"}, {"stop": [1]}, {"stop": [None]}]),
            ("generation", "seed is", [{"seed": "1"}, {"seed": 0.5}]),
        )
        for value in values
    }
    | {
        f"fingerprint without {field}": (fingerprint(**{field: ...}), f"{field!r} is missing")
        for field in ("architecture", "shapes", "tokenizer", "chat_template")
    }
    | {
        "a fingerprint of numbers": (fingerprint(shapes=5), "'shapes'"),
        "a fingerprint with more": (fingerprint(layers="x"), "'layers' is unknown"),
        "no card": (lambda folder: (folder / CARD_FILE).unlink(), "missing"),
        "a card that is a folder": (
            lambda folder: [(folder / CARD_FILE).unlink(), (folder / CARD_FILE).mkdir()],
            "missing",
        ),
        "an empty card": (text(CARD_FILE, ""), "readable JSON"),
        "a card that is a list": (text(CARD_FILE, "[]"), "'name' is missing"),
        "a card that is not UTF-8": (text(CARD_FILE, b'{"title": "caf\xe9"}'), "readable JSON"),
        "a bottomless card": (text(CARD_FILE, DEEP), "nested too deeply"),
        "a metric that is NaN": (replaced(CARD_FILE, "9.5", "NaN"), "readable JSON"),
        "a metric that is infinite": (replaced(CARD_FILE, "9.5", "1e999"), "readable JSON"),
        "half a surrogate pair": (replaced(CARD_FILE, '"Law"', '"\\ud83d"'), "surrogates"),
        "a field said twice": (
            replaced(CARD_FILE, '"title": "Law"', '"title": "Law", "title": "Lore"'),
            "twice",
        ),
    }
)

NAMES = {
    f"named {name[:20]!r}": (both(card(name=name)), "cannot name an expert")
    for name in ("base", "Law", "law!", "-law", "_law", "law.v2", "law v2", "قانون", "a" * 64, "")
} | {
    "named with a line break": (card(name="law\n"), "cannot name an expert"),
    "named unlike its folder": (card(name="lore"), "its card is named 'lore'"),
}

BASES = {
    f"another {field.replace('_', ' ')}": (fingerprint(**{field: "other"}), field.replace("_", " "))
    for field in ("architecture", "shapes", "tokenizer", "chat_template")
}

EXEMPLARS = {
    f"an exemplar {str(line)[:24]}": (text(EXEMPLARS_FILE, line), "line 1 of exemplars.jsonl")
    for line in (
        "What is a tort?",
        "[]",
        "5",
        "null",
        "{}",
        '{"text": ""}',
        '{"text": " "}',
        '{"text": 5}',
        '{"text": null}',
        '{"language": "en"}',
        '{"text": "a", "language": 5}',
        '{"text": "a", "language": ""}',
        '{"text": "a", "lang": "en"}',
        '{"text": "a", "text": "b"}',
        '{"text": "\\ud83d"}',
        '{"text": "a"} {"text": "b"}',
        '{"text": "caf\xe9"}'.encode("latin-1"),
        DEEP,
    )
} | {
    "a bad third line": (
        text(EXEMPLARS_FILE, '{"text": "a"}\n\n{"text": }\n'),
        "line 3 of exemplars.jsonl",
    ),
    "exemplars in a folder": (
        lambda folder: [(folder / EXEMPLARS_FILE).unlink(), (folder / EXEMPLARS_FILE).mkdir()],
        "exemplars.jsonl' cannot be read",
    ),
    "exemplars behind a dead link": (
        lambda folder: [
            (folder / EXEMPLARS_FILE).unlink(),
            (folder / EXEMPLARS_FILE).symlink_to("gone"),
        ],
        "exemplars.jsonl' cannot be read",
    ),
}

NEEDS_THE_BASE = {"wrong in features", "wrong out features", "a module that the base lacks"}

DEFECTS = [
    pytest.param(change, words, id=f"{group}-{name}")
    for group, cases in {
        "weights": WEIGHTS,
        "safetensors": SAFETENSORS,
        "config": CONFIGS,
        "card": CARDS,
        "name": NAMES,
        "base": BASES,
        "exemplars": EXEMPLARS,
    }.items()
    for name, (change, words) in cases.items()
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(tmp_path)


@pytest.mark.parametrize(("change", "words"), DEFECTS)
def test_a_defect_is_refused_in_one_sentence(folder: Path, change: Change, words: str):
    """Lost: a running server, to a folder that breaks or silently spoils it once it is loaded."""
    change(folder)
    with pytest.raises(UnfitExpert) as refused:
        read_expert(folder, BASE)
    message = str(refused.value)
    assert words in message
    assert str(folder) in message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 1000


@pytest.mark.parametrize("name", sorted((WEIGHTS | SAFETENSORS).keys() - NEEDS_THE_BASE))
def test_a_defect_of_the_weights_is_found_without_a_base(folder: Path, name: str):
    """Lost: `one4all check` on a machine that has no base."""
    change, words = (WEIGHTS | SAFETENSORS)[name]
    change(folder)
    with pytest.raises(UnfitExpert, match=re.escape(words)):
        read_expert(folder)


@pytest.mark.parametrize("name", ["gone", "x" * 5000, "law/expert.json", "nul\0"])
def test_what_is_no_folder_is_refused(folder: Path, name: str):
    """Lost: a sentence instead of a traceback for a mistyped path."""
    with pytest.raises(UnfitExpert, match=r"no such directory|cannot be read"):
        read_expert(folder.parent / name)


def test_a_good_folder_is_read_whole(folder: Path):
    """Lost: an expert's facts; the layers would scale it wrongly or the router not know it."""
    expert = read_expert(folder, BASE)
    assert expert.factors == {Q: LoraFactor(2, 4.0, 4, 6), UP: LoraFactor(2, 4.0, 4, 8)}
    assert expert.exemplars == (Exemplar("What is a tort?"), Exemplar("قرارداد چیست؟", "fa"))
    assert expert.name == "law"
    assert expert.weights_file == folder / WEIGHTS_FILE
    assert expert.card.generation == {"max_tokens": 96, "temperature": 0, "stop": ["\n\n"]}


def test_a_card_reads_as_it_was_written(folder: Path, tmp_path: Path):
    """Lost: facts of a card, each time it is written anew by training."""
    card_read = ExpertCard.read(folder)
    card_read = replace(card_read, languages=("en", "fa"), labels=("a", "b"), title="قانون")
    card_read.write(tmp_path)
    assert ExpertCard.read(tmp_path) == card_read


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(in_bf16(), id="BF16"),
        pytest.param(tensors(A=ONES.astype("f2"), B=np.ones((6, 2), "f2")), id="F16"),
        pytest.param(tensors(A=ONES.astype("f8")), id="F64"),
        pytest.param(with_value(65504, "f2"), id="the largest F16"),
        pytest.param(lambda folder: (folder / EXEMPLARS_FILE).unlink(), id="no exemplars"),
        pytest.param(text(EXEMPLARS_FILE, ""), id="empty exemplars"),
        pytest.param(text(EXEMPLARS_FILE, '{"text": "a"}\r\n\r\n'), id="Windows line ends"),
        pytest.param(text("README.md", "x"), id="a README"),
        pytest.param(lambda folder: (folder / "checkpoint-10").mkdir(), id="a checkpoint"),
        pytest.param(card(generation={}), id="no generation defaults"),
        pytest.param(config(lora_alpha=0.5), id="a fractional alpha"),
        pytest.param(config(rank_pattern={}, alpha_pattern=None), id="empty patterns"),
    ]
    + [
        pytest.param(config(**{option: value}), id=f"{option} {value}")
        for option, values in UNSUPPORTED.items()
        for value in values
    ],
)
def test_what_is_harmless_passes(folder: Path, change: Change):
    """Lost: good experts, refused for an option that PEFT writes by default."""
    change(folder)
    assert read_expert(folder, BASE).factors.keys() == {Q, UP}


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "law-2_x"])
def test_good_names_pass(tmp_path: Path, name: str):
    """Lost: a name that the design allows."""
    assert read_expert(build(tmp_path, name), BASE).name == name


@pytest.mark.parametrize(
    ("changes", "q", "up"),
    [
        ({}, 4.0, 4.0),
        ({"use_rslora": True}, 8 / math.sqrt(2), 8 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 6}}, 3.0, 4.0),
        ({"alpha_pattern": {"proj": 6}}, 4.0, 4.0),
        ({"alpha_pattern": {".*_proj": 6, "q_proj": 2}}, 3.0, 3.0),
        (
            {"alpha_pattern": {r"layers\.\d+\.mlp\.up_proj": 6}, "use_rslora": True},
            None,
            3 * 2**0.5,
        ),
        ({"r": 4, "rank_pattern": {"up_proj": 2, "self_attn.q_proj": 2}}, 4.0, 4.0),
        ({"lora_alpha": -2}, -1.0, -1.0),
    ],
)
def test_scales_are_those_of_peft(folder: Path, changes, q: float | None, up: float):
    """Lost: the strength at which an expert was trained; its answers would drift unnoticed."""
    config(**changes)(folder)
    factors = read_expert(folder, BASE).factors
    assert factors[Q].scale == pytest.approx(q if q is not None else 8 / math.sqrt(2))
    assert factors[UP].scale == pytest.approx(up)


def test_ranks_may_differ_between_layers(folder: Path):
    """Lost: adapters with a rank_pattern."""
    tensors(A=np.ones((3, 4), "f4"), B=np.ones((6, 3), "f4"))(folder)
    config(rank_pattern={"q_proj": 3})(folder)
    factors = read_expert(folder, BASE).factors
    assert (factors[Q].rank, factors[Q].scale) == (3, pytest.approx(8 / 3))
    assert (factors[UP].rank, factors[UP].scale) == (2, 4.0)


@pytest.mark.parametrize(
    "text_of_one",
    [
        "plain",
        "two\nlines",
        "separator\u2028inside",
        "next\u0085line",
        "form\x0cfeed",
        "دو\u200cخط",
    ],
)
def test_exemplars_survive_being_written(tmp_path: Path, text_of_one: str):
    """Lost: an expert whose exemplars hold a character that Python counts as a line end."""
    exemplars = (Exemplar(text_of_one, "fa"), Exemplar("next"))
    write_exemplars(tmp_path, exemplars)
    assert read_exemplars(tmp_path) == exemplars


def test_no_exemplars_can_be_written_and_read(tmp_path: Path):
    """Lost: a new expert without exemplars, refused for the file that training wrote."""
    write_exemplars(tmp_path, [])
    assert read_exemplars(tmp_path) == ()


def test_weights_behind_a_link_are_read(folder: Path, tmp_path: Path):
    """Lost: experts laid out as the hub's cache does, with links to blobs."""
    blob = tmp_path / "blob"
    (folder / WEIGHTS_FILE).rename(blob)
    (folder / WEIGHTS_FILE).symlink_to(blob)
    (tmp_path / "link").symlink_to(folder)
    assert read_expert(tmp_path / "link", BASE).name == "law"


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        pytest.param(card(title="Lore", description="Other words.", version=7), False, id="card"),
        pytest.param(text(EXEMPLARS_FILE, '{"text": "a"}\n'), False, id="exemplars"),
        pytest.param(config(lora_dropout=0.1), False, id="dropout"),
        pytest.param(tensors(A=ONES), True, id="weights"),
        pytest.param(config(lora_alpha=16), True, id="alpha"),
        pytest.param(config(use_rslora=True), True, id="rslora"),
        pytest.param(config(alpha_pattern={"q_proj": 4}), True, id="alpha of one layer"),
    ],
)
def test_identity_is_weights_and_scale(folder: Path, change: Change, differs: bool):
    """Lost: right caches; they are keyed by identity, so a stale one would answer for another."""
    before = read_expert(folder, BASE).identity
    change(folder)
    assert (read_expert(folder, BASE).identity != before) is differs


def test_identity_does_not_know_the_name(tmp_path: Path):
    """Lost: memory, to one adapter that is loaded once for each of its names."""
    expert, copy = (read_expert(build(tmp_path, name), BASE) for name in ("law", "lore"))
    assert expert.identity == copy.identity


def test_bf16_by_hand_is_bf16():
    """Lost: the sense of the BF16 cases above."""
    assert bf16(np.array([[1.0, -2.0]])) == struct.pack("<HH", 0x3F80, 0xC000)
    assert bf16(np.array([math.inf])) == struct.pack("<H", 0x7F80)
