"""An engine under load: more requests than rows, more adapters than memory, changes meanwhile."""

import gc
import threading
from itertools import islice

import pytest
from prometheus_client.parser import text_string_to_metric_families

from one4all_lc.base.compiled import kernel
from one4all_lc.base.linears import Linears
from one4all_lc.errors import DeadlineExceeded, EngineBusy, EngineClosed
from one4all_lc.library import Library
from tests.asking import adapter_bytes, engine_with, request
from tests.experts import write_expert
from tests.prompts import PROMPTS

WAIT = 60
FOX = PROMPTS[10]


def serial(base, asked, **settings):
    """What each request is answered when nothing else runs and nothing is reused."""
    with engine_with(base, max_rows=1, prefix_bytes=0, **settings) as engine:
        return [engine.submit(item).result(WAIT).tokens for item in asked]


def together(engine, asked):
    handles = [engine.submit(item) for item in asked]
    return [handle.result(WAIT).tokens for handle in handles]


def begun(handle):
    """The handle, once its first token is there."""
    next(iter(handle))
    return handle


def test_a_freed_slot_is_taken_while_the_others_run(base_nf4, experts):
    lengths = (3, 17, 5, 1, 9, 12, 2)
    asked = [
        request(base_nf4, text * (1 + i % 3), experts[i % 2], max_tokens=length)
        for i, (text, length) in enumerate(zip(PROMPTS, lengths, strict=False))
    ]
    expected = serial(base_nf4, asked)
    with engine_with(base_nf4, max_rows=3, prefix_bytes=0) as engine:
        assert together(engine, asked) == expected
        assert engine._decoder.cache.layers[0].keys.shape[0] <= 4, "three slots served seven"


def test_a_long_prompt_is_read_in_chunks_as_at_once(base_nf4, experts, monkeypatch):
    text = " ".join(PROMPTS)
    asked = [request(base_nf4, text, *mixture, max_tokens=8) for mixture in ((), (experts[2],))]
    monkeypatch.setattr("one4all_lc.engine.rows.PREFILL_TOKENS", 1 << 16)
    expected = serial(base_nf4, asked)
    monkeypatch.setattr("one4all_lc.engine.rows.PREFILL_TOKENS", 64)
    with engine_with(base_nf4, prefix_bytes=0) as engine:
        neighbour = begun(engine.submit(request(base_nf4, FOX, experts[0], max_tokens=200)))
        before = engine.stats().steps
        assert together(engine, asked) == expected
        assert engine.stats().steps - before > len(asked[0].prompt) // 64 * 2
        neighbour.cancel()


def test_a_stream_gets_a_token_with_every_chunk_of_a_newcomers_prompt(base_nf4, monkeypatch):
    monkeypatch.setattr("one4all_lc.engine.rows.PREFILL_TOKENS", 64)
    with engine_with(base_nf4, prefix_bytes=0) as engine:
        running = begun(engine.submit(request(base_nf4, FOX, max_tokens=4000)))
        newcomer = engine.submit(request(base_nf4, " ".join(PROMPTS), max_tokens=1))
        newcomer.result(WAIT)
        running.cancel()
        tokens, steps = len(running.result(WAIT).tokens), engine.stats().steps
    assert tokens >= steps - 1


def test_a_mixture_answers_among_single_experts_as_alone(base_nf4, experts):
    one, two, three = experts[:3]
    mixtures = [(), (one,), (two,), ((one, 0.7), (two, 0.3)), ((three, 0.7), (one, 0.3)), (three,)]
    asked = [request(base_nf4, FOX, *mixture, max_tokens=24) for mixture in mixtures]
    expected = serial(base_nf4, asked)
    assert len(set(expected)) > 4, "they must differ for the test to count"
    assert expected[3] not in expected[:3], "a mixture is none of its parts"
    with engine_with(base_nf4) as engine:
        assert together(engine, asked) == expected


def test_more_adapters_than_memory_holds_answer_the_same(base_nf4, experts):
    asked = [
        request(base_nf4, PROMPTS[i % 4], experts[i * 5 % 6], max_tokens=4 + i % 5)
        for i in range(24)
    ]
    largest = max(map(adapter_bytes, experts))
    with engine_with(base_nf4, prefix_bytes=0) as engine:
        expected = [*together(engine, asked[:12]), *together(engine, asked[12:])]
        assert engine.stats().adapter_loads == 6
    with engine_with(base_nf4, adapter_bytes=2 * largest, prefix_bytes=0) as engine:
        assert [*together(engine, asked[:12]), *together(engine, asked[12:])] == expected
        stats = engine.stats()
        assert stats.adapter_loads > 6, "adapters must have been evicted for the test to count"
        assert stats.adapter_bytes <= 2 * largest


def test_recorded_steps_choose_what_the_models_own_code_does(base_nf4, experts):
    """Lost: a recording made for some rows answers others, or goes on with old numbers."""
    mixtures = [experts[:1], experts[1:2], (), [(experts[2], 0.5), (experts[3], 0.5)], experts[4:5]]
    asked = [
        request(base_nf4, PROMPTS[i % 4], *mixtures[i % 5], max_tokens=6 + 3 * i) for i in range(19)
    ]
    with engine_with(base_nf4) as engine:
        engine._decoder._replay = None
        expected = together(engine, asked)
        assert engine.stats().recorded_bytes == 0
    with engine_with(base_nf4) as engine:
        assert together(engine, asked) == expected
        assert together(engine, asked[::-1]) == expected[::-1]
        assert engine.stats().recorded_bytes > 0


def test_where_our_kernels_do_not_run_answers_are_the_same(base_fp32, experts, monkeypatch):
    """As on CUDA: adapters packed, attention by torch, keys and values written by index."""
    asked = [
        request(base_fp32, PROMPTS[i % 4], *mixture, max_tokens=6)
        for i, mixture in enumerate(
            [experts[:1], experts[1:2], (), [(experts[2], 0.5), (experts[3], 0.5)], experts[:1], ()]
        )
    ]
    with engine_with(base_fp32) as engine:
        expected = together(engine, asked)
    monkeypatch.setattr(kernel, "_STANDS_FOR", {})
    monkeypatch.setattr(Linears.of(base_fp32), "compiled", False)
    with engine_with(base_fp32) as engine:
        assert together(engine, asked) == expected
        stats = engine.stats()
    assert 0 < stats.packed_bytes < stats.adapter_budget


def test_a_new_version_answers_the_next_request_while_the_old_one_finishes(base_nf4, tmp_path):
    facts = base_nf4.facts
    folders = [write_expert(tmp_path / f"v{seed}" / "law", facts, seed=seed) for seed in (1, 2)]
    library = Library(base=facts)
    library.add(folders[0])

    def ask(tokens=24):
        return request(base_nf4, FOX, library["law"], max_tokens=tokens)

    old = library["law"].identity
    (as_old,) = serial(base_nf4, [ask()])
    library.replace(folders[1])
    new = library["law"].identity
    (as_new,) = serial(base_nf4, [ask()])
    assert as_old != as_new
    library.replace(folders[0])
    with engine_with(base_nf4) as engine:
        running = begun(engine.submit(ask()))
        library.replace(folders[1])
        after = engine.submit(ask())
        assert engine.residency._users[old] == 1
        assert running.result(WAIT).tokens == as_old
        assert after.result(WAIT).tokens == as_new
        engine.submit(request(base_nf4, FOX, max_tokens=2)).result(WAIT)  # the step is over
        gc.collect()
        assert engine.residency.identities == (new,), "the old one is freed"
        library.replace(folders[0])  # back again
        assert engine.submit(ask()).result(WAIT).tokens == as_old


def test_a_request_out_of_time_ends_and_no_other(base_nf4):
    other = request(base_nf4, FOX, max_tokens=40)
    (expected,) = serial(base_nf4, [other])
    with engine_with(base_nf4, max_rows=2) as engine:
        stays = engine.submit(other)
        late = begun(engine.submit(request(base_nf4, FOX, max_tokens=4000, timeout=1)))
        waits = engine.submit(request(base_nf4, FOX, timeout=0.2))
        for handle in (waits, late):
            with pytest.raises(DeadlineExceeded, match="was not whole within"):
                handle.result(WAIT)
        assert stays.result(WAIT).tokens == expected
        assert engine.stats().ended["deadline"] == 2
        in_time = request(base_nf4, FOX, max_tokens=40, timeout=WAIT)
        assert engine.submit(in_time).result(WAIT).tokens == expected


def test_a_request_out_of_time_does_not_wait_for_its_adapter(base_nf4, experts, monkeypatch):
    with engine_with(base_nf4) as engine:
        gate, load = threading.Event(), engine.residency.load
        monkeypatch.setattr(engine.residency, "load", lambda e: gate.wait(WAIT) and load(e))
        handle = engine.submit(request(base_nf4, FOX, experts[0], timeout=0.2))
        try:
            with pytest.raises(DeadlineExceeded):
                handle.result(10)
        finally:
            gate.set()


def test_a_cancelled_request_frees_its_slot_at_the_next_step(base_nf4):
    with engine_with(base_nf4, max_rows=1) as engine:
        running = begun(engine.submit(request(base_nf4, FOX, max_tokens=4000)))
        gone, waits = (engine.submit(request(base_nf4, FOX, max_tokens=2)) for _ in range(2))
        gone.cancel()
        assert gone.result(WAIT).finish_reason == "cancelled"
        assert not waits.done
        running.cancel()
        assert len(waits.result(WAIT).tokens) == 2
        assert running.result(WAIT).finish_reason == "cancelled"
        before = engine.stats().steps
    assert before <= len(running.result().tokens) + 2


def test_a_cancelled_request_leaves_nothing_broken_in_its_slot(base_nf4, experts, monkeypatch):
    """Masked numbers that are not finite would still poison the next answer from that slot."""
    monkeypatch.setattr("one4all_lc.engine.rows.PREFILL_TOKENS", 64)
    plain = request(base_nf4, FOX, max_tokens=4)
    (expected,) = serial(base_nf4, [plain])
    with engine_with(base_nf4, max_rows=1) as engine:
        load, forward = engine.residency.load, engine._decoder.forward

        def broken_load(expert):
            adapter = load(expert)
            for _, b in adapter.factors.values():
                b.fill_(float("nan"))
            return adapter

        def forward_then_cancel(rows, adapters):
            logits = forward(rows, adapters)
            if rows[0].mixture:  # it has read a part of its prompt
                broken.cancel()
            return logits

        monkeypatch.setattr(engine.residency, "load", broken_load)
        monkeypatch.setattr(engine._decoder, "forward", forward_then_cancel)
        broken = engine.submit(request(base_nf4, " ".join(PROMPTS), experts[0]))
        assert broken.result(WAIT).finish_reason == "cancelled"
        assert engine.submit(plain).result(WAIT).tokens == expected


def test_an_answer_is_as_long_as_was_asked_for(base_nf4):
    with engine_with(base_nf4) as engine:
        short = engine.submit(request(base_nf4, PROMPTS[0], max_tokens=60)).result(WAIT)
        assert short.finish_reason == "stop"
        length = len(short.tokens)
        more = [
            engine.submit(request(base_nf4, PROMPTS[0], min_tokens=n, max_tokens=length + 5))
            for n in (length - 1, length, length + 9)
        ]
        same, longer, whole = (handle.result(WAIT) for handle in more)
    assert same.tokens == short.tokens
    assert longer.tokens[: length - 1] == short.tokens[:-1]
    assert len(longer.tokens) > length
    assert len(whole.tokens) == length + 5
    assert not set(whole.tokens) & base_nf4.end_tokens


def test_a_full_queue_is_said_at_once_to_who_would_not_wait(base_nf4):
    with engine_with(base_nf4, max_rows=1, max_waiting=1) as engine:
        running = begun(engine.submit(request(base_nf4, FOX, max_tokens=4000)))
        waits = engine.submit(request(base_nf4, FOX, max_tokens=2))
        with pytest.raises(EngineBusy):
            engine.submit(request(base_nf4, FOX), patience=0)
        running.cancel()
        assert engine.submit(request(base_nf4, FOX, max_tokens=2)).result(WAIT).tokens
        assert waits.done


def test_closing_may_let_everybody_finish(base_nf4, experts):
    asked = [request(base_nf4, FOX, expert, max_tokens=5) for expert in experts[:3]]
    expected = serial(base_nf4, asked)
    with engine_with(base_nf4, max_rows=1) as engine:
        handles = [engine.submit(item) for item in asked]
        engine.close(drain=True)
        assert all(handle.done for handle in handles)
        assert [handle.result().tokens for handle in handles] == expected
        with pytest.raises(EngineClosed):
            engine.submit(asked[0])


def test_the_figures_say_what_the_engine_did(base_nf4, experts):
    with engine_with(base_nf4, max_rows=1) as engine:
        before = engine.stats()
        assert (before.tokens, before.ended, before.first_token_seconds) == (0, {}, None)
        running = engine.submit(request(base_nf4, FOX, experts[0], max_tokens=4000))
        list(islice(running, 3))
        waits = engine.submit(request(base_nf4, FOX, max_tokens=3))
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (1, 1)
        assert (stats.adapters, stats.adapter_bytes) == (1, adapter_bytes(experts[0]))
        assert stats.packed_bytes == 0, "our kernel reads adapters as loaded"
        assert stats.recorded_bytes > 0, "the third token's step came for the second time"
        running.cancel()
        count = len(running.result(WAIT).tokens)
        waits.result(WAIT)
        engine.close(drain=True)  # the last step is counted after its readers were served
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.tokens == count + 3
        assert stats.ended == {"cancelled": 1, "length": 1}
        assert stats.adapter_loads == 1
        assert stats.tokens_per_second > 0
        assert 0 < stats.first_token_seconds < WAIT
        families = {item.name: item for item in text_string_to_metric_families(stats.prometheus())}
    value = {name: family.samples[0].value for name, family in families.items()}
    assert value["one4all_tokens"] == stats.tokens
    assert value["one4all_adapter_bytes"] == stats.adapter_bytes
    ended = families["one4all_requests"].samples
    assert {item.labels["how"]: item.value for item in ended} == stats.ended
    assert families["one4all_running"].type == "gauge"
    assert families["one4all_steps"].type == "counter"
