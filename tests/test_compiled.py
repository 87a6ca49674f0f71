"""Our own kernels against torch in float64: right, for every shape, and no matter who else runs."""

import pytest
import torch
from torch.nn import functional

from one4all_lc.base import gates, norms, rotary
from one4all_lc.base.compiled import (
    attention,
    gate,
    kernel,
    lora,
    nf4,
    nf4_layout,
    norm,
    rotation,
    slots,
    tiles,
    vectors,
)
from one4all_lc.base.compiled.kernel import bits_of
from one4all_lc.base.kernels import OneDnn, Tiles
from one4all_lc.base.quantized import Nf4

TYPES = {torch.float32: 1e-6, torch.bfloat16: 3e-3}


@pytest.fixture(params=TYPES, ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def assert_close(found, expected):
    assert found.shape == expected.shape
    error = (found.double() - expected).norm() / expected.norm()
    assert error < TYPES[found.dtype], f"{float(error):.2e}"


@pytest.mark.parametrize("shape", [(1, 576), (3, 5, 64), (2000, 48), (1, 7)])
def test_norms(dtype, shape):
    x, gain = torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype)
    expected = functional.rms_norm(x.double(), shape[-1:], gain.double(), 1e-5)
    assert_close(norm.rms_norm(x, gain, 1e-5), expected)
    assert_close(norm.rms_norm(x.transpose(0, -2), gain, 1e-5), expected.transpose(0, -2))


@pytest.mark.parametrize("shape", [(1, 48), (3, 5, 1536), (2, 7)])
def test_gates(dtype, shape):
    """A gate that overflows for large numbers would make an answer of nothing but NaN."""
    gates_, values = (torch.randn(2, *shape) * 30).to(dtype)
    joined = torch.cat([gates_, values], -1)
    assert_close(gate.silu_gate(joined), functional.silu(gates_.double()) * values.double())
    joined[..., 0] = torch.nan
    found = gate.silu_gate(joined)
    assert found[..., 0].isnan().all()
    assert found[..., 1:].isfinite().all()


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gates_replace_only_what_is_the_same(activation):
    """A model with another activation would compute something else without a word."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    config = LlamaConfig(hidden_size=32, intermediate_size=32, hidden_act=activation)
    assert gates._is_gated(LlamaMLP(config)) == (activation == "silu")


@pytest.mark.parametrize(("tokens", "heads", "size"), [(1, 9, 64), (5, 2, 16), (300, 3, 20)])
def test_rotations(dtype, tokens, heads, size):
    joined = torch.randn(1, tokens, (heads + 1) * size).to(dtype)  # as queries lie beside keys
    x = joined[..., : heads * size].view(1, tokens, heads, size).transpose(1, 2)
    cos, sin = torch.rand(2, 1, tokens, size).to(dtype)
    wide = x.double()
    turned = torch.cat((-wide[..., size // 2 :], wide[..., : size // 2]), -1)
    assert_close(
        rotation.rotate(x, cos, sin), wide * cos.double()[:, None] + turned * sin.double()[:, None]
    )


def test_a_batch_turns_like_its_rows(dtype):
    x = torch.randn(3, 4, 2, 16).to(dtype).transpose(1, 2)
    for rows in (1, 3):
        cos, sin = torch.rand(2, rows, 4, 16).to(dtype)
        found = rotary._turned(x, cos, sin)
        for i in range(3):
            own = slice(i, i + 1) if rows > 1 else slice(0, 1)
            assert torch.equal(found[i], rotation.rotate(x[i : i + 1], cos[own], sin[own])[0])


@pytest.mark.parametrize("tokens", [1, 40])
def test_writing_into_slots(dtype, tokens):
    x = torch.randn(1, tokens, 3, 16).to(dtype).transpose(1, 2)
    store = torch.randn(tokens + 2, 3, 70, 16).to(dtype)
    rows, columns = torch.randperm(tokens + 2)[:tokens], torch.randint(0, 70, (tokens,))
    expected = store.clone()
    expected[rows, :, columns] = x[0].transpose(0, 1)
    slots.write(x, store, rows, columns)
    assert torch.equal(store, expected)


def attend(query, keys, values, rows, positions, scale=0.3, width=None):
    out, tokens = torch.empty_like(query), torch.arange(len(query))
    attention.attend(query, keys, values, out, tokens, rows, positions, scale, width)
    return out


@pytest.mark.parametrize("width", [None, 1, 6, 1000])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(9, 3, 64), (4, 4, 16), (2, 1, 10)])
def test_attention(dtype, heads, key_heads, size, width):
    lengths = [1, 2, 5, 7, 64, 129]
    keys, values = torch.randn(2, 8, key_heads, 130, size).to(dtype)
    query = torch.randn(len(lengths), heads, size).to(dtype)
    rows, positions = torch.randperm(8)[: len(lengths)], torch.tensor(lengths) - 1
    found = attend(query, keys, values, rows, positions, width=width)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        seen = slice(max(0, length - (width or length)), length)
        parts = (
            item[row, :, seen].double().repeat_interleave(heads // key_heads, 0)
            for item in (keys, values)
        )
        expected = functional.scaled_dot_product_attention(
            query[i, :, None].double(), *parts, scale=0.3
        )
        assert_close(found[i], expected[:, 0])
        only = slice(i, i + 1)
        alone = attend(query[only], keys, values, rows[only], positions[only], width=width)
        assert torch.equal(alone[0], found[i]), "a row depends on its company"


def test_attention_of_some_tokens_leaves_the_others(dtype):
    keys, values = torch.randn(2, 1, 1, 8, 16).to(dtype)
    query = torch.randn(4, 2, 16).to(dtype)
    zeros, positions = torch.zeros(4, dtype=torch.long), torch.arange(4)
    whole, some = attend(query, keys, values, zeros, positions), torch.zeros_like(query)
    picked = torch.tensor([3, 1])
    attention.attend(query, keys, values, some, picked, zeros[picked], positions[picked], 0.3, None)
    assert torch.equal(some[picked], whole[picked])
    assert not some[[0, 2]].any()


def test_attention_keeps_what_is_not_finite(dtype):
    """A broken row must be found, not answered."""
    query, zero = torch.randn(1, 2, 16).to(dtype), torch.tensor([0])
    for broken in range(2):
        both = torch.randn(2, 1, 1, 8, 16).to(dtype)
        both[broken, 0, 0, 3, 5] = torch.nan
        out = attend(query, *both, zero, torch.tensor([5]))
        assert out[..., 5].isnan().all()
        before = attend(query, *both, zero, torch.tensor([2]))
        assert before.isfinite().all(), "what is not seen does no harm"
    query[0, 1, 0] = torch.nan
    out = attend(query, *torch.randn(2, 1, 1, 8, 16).to(dtype), zero, torch.tensor([5]))
    assert out[0, 0].isfinite().all()
    assert out[0, 1].isnan().all()


@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("rank", [1, 7, 8, 19])
def test_adapters(dtype, rank, read):
    features, outputs, rows = 40, 33, 6
    x, y = torch.randn(rows, features).to(dtype), torch.randn(rows, outputs).to(dtype)
    a, b = torch.randn(rank, features).to(dtype), torch.randn(rank, 20).to(dtype)
    pair = torch.tensor([[a.data_ptr(), b.data_ptr(), rank, 3, 20, bits_of(0.5)], [0] * 6])
    units = torch.tensor([[1, 4, pair.data_ptr(), 2, read], [5, 1, pair.data_ptr(), 2, read]])
    expected, bare, again = y.double(), y[0].clone(), y.clone()
    expected[1:, 3:23] += 0.5 * x[1:].double() @ a.double().T @ b.double()
    lora.add(x, y, units, 0, rank)
    assert_close(y, expected)
    assert torch.equal(y[0], bare)
    lora.add(x, again, torch.tensor([[3, 1, pair.data_ptr(), 2, read]]), 0, rank)
    assert torch.equal(again[3], y[3]), "a row depends on its company"


@pytest.mark.skipif(not vectors.multiplies_pairs(), reason="the processor has no AVX512-BF16")
@pytest.mark.parametrize(("rank", "features", "width"), [(4, 32, 32), (16, 576, 192), (64, 96, 64)])
def test_adapters_in_pairs(rank, features, width):
    """A wrong pair would be an answer of nobody's expert."""
    torch.manual_seed(0)
    rows, outputs = 42, width + 64
    x, y = torch.randn(rows, features).bfloat16(), torch.randn(rows, outputs).bfloat16()
    a, b = torch.randn(rank, features).bfloat16(), torch.randn(rank, width).bfloat16()
    pair = torch.tensor([[a.data_ptr(), b.data_ptr(), rank, 32, width, bits_of(0.5)], [0] * 6])
    units = torch.tensor([[first, 7, pair.data_ptr(), 2, 1] for first in range(0, 35, 7)])
    expected, again = y.double(), y.clone()
    expected[:35, 32 : 32 + width] += 0.5 * x[:35].double() @ a.double().T @ b.double()
    lora.add(x, y, units, 0, rank, in_pairs=True)
    assert_close(y, expected)
    assert torch.equal(y[35:], again[35:])
    for row in range(9):
        unit = torch.tensor([[row, 1, pair.data_ptr(), 2, 0]])
        lora.add(x, again, unit, 0, rank, in_pairs=True, reads=False)
        assert torch.equal(again[row], y[row]), "a row depends on its company"


@pytest.mark.skipif(not tiles.multiplies_tiles(), reason="the processor has no AMX")
@pytest.mark.parametrize(
    ("rank", "features", "width"), [(4, 32, 32), (8, 576, 192), (20, 96, 64), (64, 64, 1536)]
)
def test_adapters_of_prompts_in_tiles(rank, features, width):
    torch.manual_seed(0)
    rows, outputs, begin = 64, width + 64, 32
    x, y = torch.randn(rows, features).bfloat16(), torch.randn(rows, outputs).bfloat16()
    a, b = torch.randn(rank, features).bfloat16(), torch.randn(rank, width).bfloat16()
    # A pair of a smaller rank comes second, where the larger one has left its numbers.
    small = [a.data_ptr(), b.data_ptr(), 4, begin, width, bits_of(-0.25)]
    pairs = torch.tensor([[a.data_ptr(), b.data_ptr(), rank, begin, width, bits_of(0.5)], small])

    def added(to: torch.Tensor, *units: tuple[int, int]) -> torch.Tensor:
        made = torch.tensor([[*unit, pairs.data_ptr(), 2, 1] for unit in units])
        lora.add(x, to, made, 0, rank, in_pairs=True)
        return to

    expected, whole = y.double(), added(y.clone(), (0, 64))
    for scale, ranks in ((0.5, rank), (-0.25, 4)):
        product = x.double() @ a[:ranks].double().T @ b[:ranks].double()
        expected[:, begin : begin + width] += scale * product
    error = (whole.double() - expected).norm() / expected.norm()
    assert error < 2 * TYPES[torch.bfloat16], "it is rounded twice, as there are two pairs"
    for count in range(1, 64):
        some = added(y.clone(), (3, min(count, 61)), (0, 2))
        after = 3 + min(count, 61)
        assert torch.equal(some[3:after], whole[3:after]), "a row depends on its company"
        assert torch.equal(some[:2], whole[:2])
        assert torch.equal(some[after:], y[after:])
    decoded = torch.tensor([[0, 4, pairs.data_ptr(), 2, 0], [4, 60, pairs.data_ptr(), 2, 1]])
    both, few = y.clone(), y.clone()
    lora.add(x, both, decoded, 0, rank, in_pairs=True)
    lora.add(x, few, decoded[:1], 0, rank, in_pairs=True, reads=False)
    assert torch.equal(both[:4], few[:4])
    assert torch.equal(both[4:], whole[4:])


def test_without_openmp_one_thread_does_all(monkeypatch, dtype):
    x, gain = torch.randn(2000, 48).to(dtype), torch.rand(48).to(dtype)
    together = norm.rms_norm(x, gain, 1e-5)
    monkeypatch.setattr(kernel, "_together", lambda: None)
    assert torch.equal(norm.rms_norm(x, gain, 1e-5), together)


def test_norms_and_rotations_replace_only_what_is_the_same(base_fp32):
    from transformers.models.cohere import modeling_cohere
    from transformers.models.llama import modeling_llama

    assert rotary._same(modeling_llama.apply_rotary_pos_emb)
    assert not rotary._same(modeling_cohere.apply_rotary_pos_emb), "it turns neighbours"
    untouched = modeling_llama.LlamaAttention.forward.__globals__["apply_rotary_pos_emb"]
    rotary.fuse(base_fp32.model)
    norms.fuse(base_fp32.model)
    assert modeling_llama.apply_rotary_pos_emb is untouched, "other models keep their own"
    layer = base_fp32.model.model.layers[0].self_attn
    assert layer.forward.__func__.__globals__["apply_rotary_pos_emb"] is not untouched


@pytest.mark.skipif(not vectors.multiplies_pairs(), reason="the processor has no AVX512-BF16")
@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize(("outputs", "features"), [(64, 64), (96, 192), (576, 1536)])
def test_products_with_nf4_weights(outputs, features, in_tiles, monkeypatch):
    """A wrong lane would be a base that talks nonsense, or nonsense in a full batch alone."""
    if in_tiles and not tiles.multiplies_tiles():
        pytest.skip("the processor has no AMX")
    monkeypatch.setattr(nf4, "multiplies_tiles", lambda: in_tiles)
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (outputs, features), dtype=torch.uint8)
    scales = torch.rand(outputs, features // nf4_layout.BLOCK) + 0.5
    values = torch.tensor(nf4_layout.VALUES, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    weight = values[codes.long()].double() * scales.double().repeat_interleave(nf4_layout.BLOCK, 1)
    x = torch.randn(45, features).bfloat16()
    laid_out = nf4_layout.packed(codes, scales)
    whole = nf4.multiply(x, laid_out, outputs)
    assert nf4.multiply(x[:0], laid_out, outputs).shape == (0, outputs)
    assert_close(whole, x.double() @ weight.T)
    for rows in (*range(1, 28), 32, 44):
        for first in (0, 45 - rows):
            own = slice(first, first + rows)
            assert torch.equal(nf4.multiply(x[own], laid_out, outputs), whole[own]), rows


@pytest.mark.skipif(not vectors.multiplies_pairs(), reason="the processor has no AVX512-BF16")
def test_nf4_weights_are_those_of_bitsandbytes():
    """Quality was measured with bitsandbytes' weights: others would make its figures untrue."""
    from bitsandbytes import functional as quantization

    weight = torch.randn(96, 128).bfloat16()
    weight = quantization.dequantize_4bit(*quantization.quantize_4bit(weight, quant_type="nf4"))
    x = torch.randn(3, 128).bfloat16()
    small = Nf4.of(weight, bias=torch.ones(96).bfloat16())
    assert_close(small(x), x.double() @ weight.double().T + 1)


@pytest.mark.skipif(not tiles.multiplies_tiles(), reason="the processor has no AMX")
@pytest.mark.parametrize(("outputs", "features"), [(32, 32), (96, 384), (576, 1536)])
def test_products_with_bfloat16_weights(outputs, features):
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, features).bfloat16(), torch.randn(outputs).bfloat16()
    x = torch.randn(77, features).bfloat16()
    whole = Tiles(weight, bias)(x)
    assert_close(whole, x.double() @ weight.T.double() + bias.double())
    assert_close(Tiles(weight)(x), x.double() @ weight.T.double())
    assert Tiles(weight)(x[:0]).shape == (0, outputs)
    for rows in (*range(1, 50), 64, 76):
        for first in (0, 77 - rows):
            own = slice(first, first + rows)
            assert torch.equal(Tiles(weight, bias)(x[own]), whole[own]), rows


@pytest.mark.skipif(not tiles.multiplies_tiles(), reason="the processor has no AMX")
def test_onednn_finds_its_own_tiles_after_ours():
    """It shares our threads, and configures tiles for itself."""
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    onednn, ours = OneDnn(weight), Tiles(weight)
    expected = onednn.at_once(x)
    for rows in range(1, 48):
        ours(x[:rows])
        assert torch.equal(onednn.at_once(x), expected)
