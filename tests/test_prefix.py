"""What an expert has just read is not read again, and never taken for what another one read."""

from dataclasses import dataclass

import pytest

from one4all_lc.engine.prefix import PrefixCache
from tests.asking import engine_with, prompt_of, request
from tests.prompts import PROMPTS

A, B = (("a", 1.0),), (("b", 1.0),)
SYSTEM = "You answer in one short sentence. " * 24


@dataclass(frozen=True)
class Read:
    """Stands for the numbers of some positions."""

    start: int
    stop: int
    memory_bytes: int = 10

    @classmethod
    def of(cls, columns):
        return cls(columns.start, columns.stop)


def cache_of(budget=1000, tile=4):
    return PrefixCache[Read](budget, tile)


def prompt(*tiles):
    """Four tokens for each number."""
    return tuple(tile * 4 + i for tile in tiles for i in range(4))


def found(cache, mixture, tokens):
    """How many tiles of a prompt are known."""
    blocks = cache.find(mixture, tokens)
    assert [block.start for block in blocks] == [4 * i for i in range(len(blocks))]
    return len(blocks)


def test_it_is_found_by_its_tokens():
    cache = cache_of()
    cache.store(A, prompt(1, 2, 3), Read.of)
    assert found(cache, A, prompt(1, 2, 3, 4)) == 3
    assert found(cache, A, prompt(1, 2, 9, 4)) == 2
    assert found(cache, A, prompt(2, 3, 4)) == 0, "the same tokens after another beginning"
    assert (cache.hit_tokens, cache.asked_tokens) == (20, 44)


@pytest.mark.parametrize(
    "other", [B, (), (("a", 0.7),), (("a", 1.0), ("b", 1.0)), (("b", 1.0), ("a", 1.0))]
)
def test_no_mixture_gets_what_another_read(other):
    cache = cache_of()
    cache.store(A, prompt(1, 2), Read.of)
    assert found(cache, other, prompt(1, 2, 3)) == 0
    cache.store(other, prompt(1, 2), Read.of)
    assert found(cache, A, prompt(1, 2, 3)) == found(cache, other, prompt(1, 2, 3)) == 2
    assert cache.memory_bytes == 40


def test_the_last_token_is_always_left_to_compute():
    """Without it there would be no logits to choose the first token from."""
    cache = cache_of()
    cache.store(A, prompt(1, 2), Read.of)
    assert found(cache, A, prompt(1, 2)) == 1
    assert found(cache, A, (*prompt(1, 2), 0)) == 2
    assert found(cache, A, ()) == 0


def test_only_whole_tiles_are_kept_and_none_is_read_twice():
    cache, reads = cache_of(), []

    def read(columns):
        reads.append((columns.start, columns.stop))
        return Read.of(columns)

    cache.store(A, (*prompt(1, 2), 0, 0), read)
    cache.store(A, (*prompt(1, 2), 0, 0, 0, 0), read)
    cache.store(A, (1, 2, 3), read)
    assert reads == [(0, 4), (4, 8), (8, 12)]


def test_the_budget_holds_and_what_was_not_used_for_longest_goes():
    cache = cache_of(budget=30)
    for tile in (1, 2, 3):
        cache.store(A, prompt(tile), Read.of)
    assert found(cache, A, prompt(1, 0)) == 1
    cache.store(A, prompt(4), Read.of)
    assert cache.memory_bytes == 30
    assert [found(cache, A, prompt(tile, 0)) for tile in (1, 2, 3, 4)] == [1, 0, 1, 1]


def test_a_beginning_outlives_what_follows_it():
    """What follows a beginning that is gone could never be found, and would take room for ever."""
    cache = cache_of(budget=30)
    cache.store(A, prompt(1, 2, 3, 4, 5), Read.of)
    assert found(cache, A, prompt(1, 2, 3, 4, 5)) == 3
    cache.store(A, prompt(1, 7), Read.of)
    cache.store(A, prompt(1, 8), Read.of)
    assert cache.memory_bytes == 30
    assert [found(cache, A, prompt(1, tile, 0)) for tile in (2, 7, 8)] == [1, 2, 2]


def test_without_a_budget_nothing_is_kept():
    cache = cache_of(budget=0)
    cache.store(A, prompt(1, 2), lambda _: pytest.fail("nothing is read either"))
    assert found(cache, A, prompt(1, 2, 3)) == 0
    assert cache.memory_bytes == 0


def test_experts_that_share_a_system_prompt_answer_as_without_reuse(base_nf4, experts):
    one, two = experts[:2]
    mixed = ((one, 0.7), (two, 0.3))
    asked = [
        request(base_nf4, PROMPTS[0], *mixture, system=SYSTEM)
        for mixture in ((one,), (two,), mixed, ())
    ]
    with engine_with(base_nf4, prefix_bytes=0) as engine:
        alone = [engine.submit(item).result() for item in asked]
        assert engine.stats().prefix_bytes == 0
    assert not any(item.cached_tokens for item in alone)
    with engine_with(base_nf4) as engine:
        first = [engine.submit(item).result() for item in asked]
        handles = [engine.submit(item) for item in asked]
        again = [handle.result() for handle in handles]
        stats = engine.stats()
    assert [item.cached_tokens for item in first] == [0] * 4
    length = len(asked[0].prompt)
    assert length > 128
    assert [item.cached_tokens for item in again] == [(length - 1) // 64 * 64] * 4
    expected = [item.tokens for item in alone]
    assert [item.tokens for item in first] == expected
    assert [item.tokens for item in again] == expected
    assert expected[0] != expected[1], "the experts must differ for the test to count"
    assert stats.cached_tokens == sum(item.cached_tokens for item in again)
    assert stats.prompt_tokens == 8 * length
    assert 0 < stats.prefix_bytes <= stats.prefix_budget


def test_the_second_turn_of_a_chat_reads_only_what_is_new(base_nf4, experts):
    first = request(base_nf4, PROMPTS[0], experts[0], system=SYSTEM)
    second = request(base_nf4, PROMPTS[1], experts[0], system=SYSTEM)
    shared = len(prompt_of(base_nf4, PROMPTS[0], SYSTEM)) // 64 * 64
    with engine_with(base_nf4) as engine:
        uncached = engine.submit(second).result()
    with engine_with(base_nf4) as engine:
        engine.submit(first).result()
        cached = engine.submit(second).result()
    assert shared - 64 <= cached.cached_tokens <= shared
    assert cached.tokens == uncached.tokens


def test_what_a_broken_adapter_read_is_not_kept(base_nf4, experts, monkeypatch):
    """Else every later answer after that system prompt would be broken too."""
    asked = request(base_nf4, PROMPTS[0], experts[0], system=SYSTEM)
    with engine_with(base_nf4) as engine:
        expected = engine.submit(asked).result().tokens
    with engine_with(base_nf4, adapter_bytes=1) as engine:  # loaded anew for each request
        load = engine.residency.load

        def broken_load(expert):
            adapter = load(expert)
            for _, b in adapter.factors.values():
                b.fill_(float("nan"))
            return adapter

        monkeypatch.setattr(engine.residency, "load", broken_load)
        with pytest.raises(FloatingPointError):
            engine.submit(asked).result()
        assert engine.stats().prefix_bytes == 0
        monkeypatch.undo()
        answer = engine.submit(asked).result()
        assert (answer.cached_tokens, answer.tokens) == (0, expected)
