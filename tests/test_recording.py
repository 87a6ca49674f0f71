"""A recorded step gives what its own code would, for any inputs, or is not recorded at all."""

import gc

import pytest
import torch

from one4all_lc.base.compiled.norm import rms_norm
from one4all_lc.base.compiled.recording import record

FEATURES = 64


@pytest.fixture
def x():
    """An input that outlives the function, as recorded functions need it."""
    return torch.arange(4.0 * FEATURES).view(4, FEATURES)


def layers(x):
    """Compute with our kernels, torch's operations, views, copies and a conversion."""
    gain = torch.full((FEATURES,), 0.5)
    for _ in range(8):
        y = rms_norm(x, gain, 1e-5)
        left, right = y.split_with_sizes([16, FEATURES - 16], -1)
        turned = torch.cat([right, left], -1).t().contiguous().reshape(FEATURES, 4)
        x = x + turned.t() * 2
    return x.to(torch.bfloat16)[:, 1:]


def test_a_recording_computes_anew_for_other_inputs(x):
    first, recording = record(lambda: layers(x))
    assert torch.equal(first, layers(x))
    for seed in range(3):
        x.copy_(torch.randn(x.shape, generator=torch.manual_seed(seed)))
        assert torch.equal(recording.run(), layers(x))


def test_nobody_else_gets_the_memory_of_a_recording(x):
    """Lost: a step writes over another request's tensors, or the process ends."""
    _, recording = record(lambda: layers(x))
    gc.collect()
    others = [torch.full((size,), 7.0) for size in range(16, 4096, 16)]
    x += 1
    assert torch.equal(recording.run(), layers(x))
    assert all(bool((other == 7).all()) for other in others)


def test_a_recording_holds_what_the_function_held_at_once_and_not_all_that_it_made(x):
    _, once = record(lambda: x + 1)

    def often():
        y = x
        for _ in range(50):
            y = y + 1
        return y

    _, recording = record(often)
    assert once.memory_bytes <= recording.memory_bytes <= 3 * once.memory_bytes


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * float(x.sum()),
        lambda x: x * 2 if x[0, 0] > 0 else x,
        lambda x: x[x > 5],
        lambda x: x[x.sum(1) > 5],
        lambda x: torch.nonzero(x),
    ],
    ids=["a number", "a branch", "a mask", "a mask of rows", "places"],
)
def test_what_looks_at_its_own_numbers_is_not_recorded(x, function):
    """Lost: a step that depends on the question gives what the first question led to."""
    found, recording = record(lambda: function(x))
    assert torch.equal(found, function(x))
    assert recording is None


def test_what_gives_something_else_the_second_time_is_not_recorded(x):
    total = torch.zeros(())
    found, recording = record(lambda: x + total.add_(1))
    assert torch.equal(found, x + 1)
    assert recording is None


def test_integers_may_choose_rows(x):
    rows = torch.tensor([2, 0])
    _, recording = record(lambda: x[rows] + 1)
    rows.copy_(torch.tensor([3, 3]))
    assert torch.equal(recording.run(), x[[3, 3]] + 1)
