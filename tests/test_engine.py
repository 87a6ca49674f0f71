"""The engine gives every request the answer that it would get alone, whatever else runs."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from one4all_lc.base.loading import SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.errors import EngineClosed, InvalidInput, UnfitExpert
from one4all_lc.folder import read_expert
from one4all_lc.sampling import Sampling
from tests.asking import TOKENS, prompt_of, request
from tests.benchmarks.quantization import nf4_errors
from tests.prompts import PROMPTS


@pytest.fixture
def engine(base_nf4):
    return Engine.of(base_nf4)


def generated(base, prompt, **settings):
    """What transformers' own `generate` answers."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, **settings
        )
    return base.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)


@pytest.fixture
def exact(base_fp32):
    return Engine.of(base_fp32)


def answers_like_generate(engine, prompts):
    """Which prompts get the text of `generate`, all asked at once."""
    base = engine.base
    handles = [engine.submit(request(base, text)) for text in prompts]
    answers = [handle.result().text for handle in handles]
    expected = [generated(base, prompt_of(base, text), do_sample=False) for text in prompts]
    return [answer == text for answer, text in zip(answers, expected, strict=True)]


def test_greedy_text_equals_generate_on_fifty_prompts(exact):
    assert all(answers_like_generate(exact, PROMPTS))


def test_quantized_greedy_text_equals_generate_but_for_near_ties(engine):
    """In bfloat16 `generate` sums a ragged end of the cache otherwise, which tips near ties."""
    same = answers_like_generate(engine, PROMPTS[:20])
    assert sum(same) >= 9, f"{sum(same)} of {len(same)}"


@pytest.mark.parametrize("phase", ["read", "decoded"])
def test_quantized_logits_are_as_near_to_exact_ones_as_transformers(nf4_logit_errors, phase):
    ours, theirs = (nf4_logit_errors[who, phase] for who in ("nf4", "transformers' nf4"))
    assert ours < 1.05 * theirs


@pytest.fixture(scope="module")
def nf4_logit_errors():
    return nf4_errors(SharedBase.load(quantization="none", dtype=torch.float32, shared=False))


def test_a_row_gets_the_same_bits_alone_and_in_company(engine, base_nf4, make_expert):
    """Rounding must not depend on the neighbours, or a busy server would answer otherwise."""
    experts = [
        read_expert(make_expert(f"r{rank}", base_nf4.facts, rank=rank, seed=rank), base_nf4.facts)
        for rank in (4, 8, 12)
    ]
    asked = [request(base_nf4, PROMPTS[10], expert, max_tokens=40) for expert in experts]
    alone = [engine.submit(item).result().tokens for item in asked]
    company = [
        engine.submit(
            request(base_nf4, text * (i + 1), *experts[i % 3 : i % 3 + i % 2], max_tokens=30 + i)
        )
        for i, text in enumerate(PROMPTS[:7])
    ]
    together = [engine.submit(item) for item in asked]
    assert [handle.result().tokens for handle in together] == alone
    for handle in company:
        handle.result()


def test_threads_get_the_answers_that_they_get_one_at_a_time(engine, base_nf4, make_expert):
    folders = [make_expert(f"e{i}", base_nf4.facts, rank=4 * (i + 1), seed=i) for i in range(3)]
    experts = [read_expert(folder, base_nf4.facts) for folder in folders]
    asked = [(text, experts[i % 3]) for i, text in enumerate(PROMPTS[:32])]

    def answer(item):
        return engine.submit(request(base_nf4, *item)).result().text

    alone = [answer(item) for item in asked]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(answer, asked))
    assert together == alone
    first = [tuple(answer((text, expert)) for text in PROMPTS[:3]) for expert in experts]
    assert len(set(first)) == 3, "the experts must differ for the test to count"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8, "top_p": 0.9, "seed": 7},
        {"temperature": 1.1, "top_k": 20, "repetition_penalty": 1.2, "seed": 3},
    ],
)
def test_a_seed_repeats_the_draw_alone_or_in_company(engine, base_nf4, settings):
    def ask(text, **changed):
        return engine.submit(request(base_nf4, text, **(settings | changed)))

    alone = ask(PROMPTS[10]).result().tokens
    company = [ask(text) for text in PROMPTS[:6]]
    assert ask(PROMPTS[10]).result().tokens == alone
    assert ask(PROMPTS[10], seed=99).result().tokens != alone
    for handle in company:
        handle.result()


def test_sampling_settings_mean_what_generate_means_by_them(exact, base_fp32):
    """Greedy with a repetition penalty has no draw: it must equal `generate`."""
    settings = {"do_sample": False, "repetition_penalty": 1.3}
    for text in PROMPTS[:4]:
        expected = generated(base_fp32, prompt_of(base_fp32, text), **settings)
        handle = exact.submit(request(base_fp32, text, repetition_penalty=1.3))
        assert handle.result().text == expected


def test_a_stop_text_of_several_tokens_is_cut_exactly(engine, base_nf4):
    whole = engine.submit(request(base_nf4, PROMPTS[10], max_tokens=60)).result().text
    middle = len(whole) // 2
    stop = whole[middle : middle + 9]
    assert len(base_nf4.tokenizer.encode(stop)) > 1
    handle = engine.submit(request(base_nf4, PROMPTS[10], max_tokens=60, stop=(stop, "никогда")))
    streamed = "".join(piece.text for piece in handle)
    assert streamed == whole[: whole.index(stop)]
    assert handle.result().finish_reason == "stop"


def test_a_reader_that_stops_frees_its_row(engine, base_nf4):
    handle = engine.submit(request(base_nf4, PROMPTS[10], max_tokens=4000))
    for piece in handle:
        if piece.text:
            break
    handle.cancel()
    completion = handle.result(timeout=60)
    assert completion.finish_reason == "cancelled"
    assert len(completion.tokens) < 4000
    assert not engine._scheduler.running


def test_an_error_reaches_the_request_that_it_belongs_to_and_no_other(
    engine, base_nf4, make_expert, monkeypatch
):
    broken = read_expert(make_expert("broken", base_nf4.facts, seed=666), base_nf4.facts)
    good = read_expert(make_expert("good", base_nf4.facts, seed=4), base_nf4.facts)
    expected = engine.submit(request(base_nf4, PROMPTS[0], good)).result().text
    load = engine.residency.load

    def broken_load(expert):
        adapter = load(expert)
        if expert is broken:  # the memory went bad after the folder was checked
            for _, b in adapter.factors.values():
                b.fill_(float("nan"))
        return adapter

    monkeypatch.setattr(engine.residency, "load", broken_load)
    handles = [engine.submit(request(base_nf4, PROMPTS[0], item)) for item in (good, broken, good)]
    with pytest.raises(FloatingPointError, match="not finite"):
        handles[1].result()
    assert [handles[i].result().text for i in (0, 2)] == [expected, expected]


def test_a_batch_that_fails_is_run_again_row_by_row(engine, base_nf4, make_expert, monkeypatch):
    """Whoever made the forward fail is found out, and the others go on."""
    culprit = read_expert(make_expert("culprit", base_nf4.facts, seed=13), base_nf4.facts)
    real, failed = engine._decoder.forward, []

    def forward(rows, adapters):
        decoding = len(rows[0].tokens) == 1
        if decoding and any(row.mixture for row in rows):
            failed.append(len(rows))
            msg = "out of memory"
            raise RuntimeError(msg)
        return real(rows, adapters)

    expected = [engine.submit(request(base_nf4, text)).result().text for text in PROMPTS[:3]]
    monkeypatch.setattr(engine._decoder, "forward", forward)
    others = [engine.submit(request(base_nf4, text)) for text in PROMPTS[:2]]
    bad = engine.submit(request(base_nf4, PROMPTS[9], culprit))
    others.append(engine.submit(request(base_nf4, PROMPTS[2])))
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result()
    assert [handle.result().text for handle in others] == expected
    assert failed[0] > 1, "the batch must have failed for the test to count"


async def test_event_loops_read_like_threads(engine, base_nf4):
    handle = engine.submit(request(base_nf4, PROMPTS[3]))
    text = "".join([piece.text async for piece in handle])
    assert text == (await handle.aresult()).text == handle.result().text
    again = await asyncio.gather(
        *(engine.submit(request(base_nf4, PROMPTS[3])).aresult() for _ in range(4))
    )
    assert {completion.text for completion in again} == {text}


def test_streamed_pieces_make_up_the_text_in_persian_too(engine, base_nf4):
    """A character of several tokens comes whole, never as a replacement character."""
    handle = engine.submit(
        request(base_nf4, "تکرار کن: سلام دنیا، حال شما چطور است؟", max_tokens=60)
    )
    pieces = [piece.text for piece in handle]
    assert "".join(pieces) == handle.result().text
    assert not any("\ufffd" in piece for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(InvalidInput, match=words):
        Sampling(**wrong)


def test_a_prompt_that_leaves_no_room_is_refused(engine, base_nf4):
    with pytest.raises(InvalidInput, match=r"reads 8,192"):
        engine.submit(Request((5,) * 9000))
    with pytest.raises(InvalidInput, match="no tokens"):
        engine.submit(Request(()))


def test_weights_that_changed_on_disk_are_not_used(engine, base_nf4, make_expert):
    expert = read_expert(make_expert("e", base_nf4.facts, seed=77), base_nf4.facts)
    content = bytearray(expert.weights_file.read_bytes())
    content[-1] ^= 1
    expert.weights_file.write_bytes(content)
    with pytest.raises(UnfitExpert, match="changed after"):
        engine.submit(request(base_nf4, PROMPTS[0], expert)).result()


def test_closing_ends_what_runs_with_an_error(base_fp32):
    engine = Engine.of(base_fp32)
    handle = engine.submit(request(base_fp32, PROMPTS[10], max_tokens=4000))
    next(iter(handle))
    engine.close()
    with pytest.raises(EngineClosed):
        handle.result(timeout=60)
    with pytest.raises(EngineClosed):
        engine.submit(request(base_fp32, PROMPTS[0]))
    assert not engine._thread.is_alive()
    assert Engine.of(base_fp32) is not engine


def test_a_base_has_one_engine(base_nf4, engine):
    assert Engine.of(base_nf4) is engine
    with pytest.raises(InvalidInput, match="has an engine"):
        Engine(base_nf4)


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(base_fp32, monkeypatch):
    """Were the thread to die, every reader would hang, and every later one."""
    engine = Engine.of(base_fp32)

    def broken(*_):
        msg = "the device is gone"
        raise RuntimeError(msg)

    monkeypatch.setattr(engine._decoder, "forward", broken)
    monkeypatch.setattr(engine._decoder, "forget", broken)
    monkeypatch.setattr(engine._scheduler, "admit", broken)
    waiting = engine.submit(request(base_fp32, PROMPTS[0]))
    monkeypatch.undo()
    assert waiting.result(timeout=60).text
    monkeypatch.setattr(engine._decoder, "forward", broken)
    monkeypatch.setattr(engine._decoder, "forget", broken)
    failing = engine.submit(request(base_fp32, PROMPTS[0]))
    with pytest.raises(RuntimeError, match="the device is gone"):
        failing.result(timeout=60)
    monkeypatch.undo()
    assert engine.submit(request(base_fp32, PROMPTS[0])).result(timeout=60).text


def test_a_request_that_asks_for_more_than_there_is_room_shares_the_batch(engine, base_nf4):
    greedy = engine.submit(request(base_nf4, PROMPTS[10], max_tokens=1_000_000))
    next(iter(greedy))
    assert engine.submit(request(base_nf4, PROMPTS[0])).result(timeout=60).text
    assert not greedy.done
    greedy.cancel()
    greedy.result(timeout=60)


def test_the_cache_does_not_keep_the_room_of_many_rows_for_one_long_one(exact, base_fp32):
    short = [exact.submit(request(base_fp32, text, max_tokens=2)) for text in PROMPTS[:32]]
    for handle in short:
        handle.result()
    long = exact.submit(request(base_fp32, " ".join(PROMPTS) * 4, max_tokens=2))
    expected = long.result().tokens
    store = exact._decoder.cache.layers[0].keys
    assert store.shape[0] * store.shape[2] <= 32 * 512
    again = exact.submit(request(base_fp32, " ".join(PROMPTS) * 4, max_tokens=2))
    assert again.result().tokens == expected


@pytest.mark.parametrize("rows", [0, -1])
def test_an_engine_without_rows_is_refused(base_fp32, rows):
    with pytest.raises(InvalidInput, match="at least one"):
        Engine(base_fp32, max_rows=rows)
