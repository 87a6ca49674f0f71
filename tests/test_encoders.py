"""Encoder experts of several kinds share a batch, and each gives what PEFT gives for it alone."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from one4all_lc import InvalidInput, Library, ModelNotFound, SharedBase, UnfitExpert
from one4all_lc.base.loading import DEFAULT_ENCODER
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.encoding import TextRow
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.engine.texts import TextRequest
from one4all_lc.errors import DeadlineExceeded, EngineBusy, EngineClosed
from one4all_lc.experts.text.reading import Tokenizing
from one4all_lc.sampling import Sampling
from tests.encoders import five, fresh, peft_logits

TEXTS = {
    "sentiment": "دوربین این گوشی عالی است ولی باتری آن زود تمام می‌شود.",
    "topics": "Le zoom est excellent.",
    "names": "Ali Daei was born in Ardabil, and plays football in Tehran for a living.",
    "reader": ("Où est né Victor Hugo ?", "Victor Hugo est né à Besançon en 1802."),
    "inference": ("All phones are black.", "A phone is red."),
}


@pytest.fixture(scope="module")
def base():
    return SharedBase.load(DEFAULT_ENCODER, quantization="none", dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(base):
    made = EncoderEngine.of(base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def experts(base, tmp_path_factory):
    return five(tmp_path_factory.mktemp("five"), base.facts, strength=0.05)


def row_of(base, expert, text):
    tokenizing = Tokenizing.of(base)
    if isinstance(text, str):
        (window,) = tokenizing.windows(tokenizing.tokens(text))
    else:
        first, second = map(tokenizing.tokens, text)
        (window,) = tokenizing.windows(second, before=first)
    return TextRow(window.tokens, expert, window.types)


@pytest.fixture(scope="module")
def rows(base, experts):
    return {name: row_of(base, experts[name], text) for name, text in TEXTS.items()}


def test_texts_are_tokenized_as_transformers_does(base, rows):
    """An expert would read other tokens than it was trained on."""
    for name, text in TEXTS.items():
        given = (text,) if isinstance(text, str) else text
        assert list(rows[name].tokens) == base.tokenizer(*given)["input_ids"]


def test_five_experts_of_every_kind_in_one_batch_equal_peft_alone(engine, experts, rows):
    """Whoever shares a batch would be answered by other weights than its own."""
    names = [*rows, *reversed(rows)]
    steps = engine.stats().steps
    for name in rows:  # adapters in memory: what is to come is one batch
        engine.submit([TextRequest(rows[name])])[0].result()
    before = engine.stats().steps
    assert before > steps
    handles = engine.submit([TextRequest(rows[name]) for name in names])
    found = [handle.result() for handle in handles]
    assert engine.stats().steps == before + 1
    model = fresh(DEFAULT_ENCODER)
    for name, logits in zip(names, found, strict=True):
        expected = peft_logits(model, experts[name], rows[name].tokens)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max() < 1e-3
    bare = model(input_ids=torch.tensor([rows["names"].tokens])).last_hidden_state
    tuned = peft_logits(model, experts["names"], rows["names"].tokens)
    from safetensors.torch import load_file

    head = load_file(experts["names"].head_file)
    untuned = (bare[0] @ head["dense.weight"].T + head["dense.bias"]).tanh() @ head["weight"].T
    assert (tuned - untuned - head["bias"]).abs().max() > 0.05, "the adapter must matter"


def test_many_threads_and_loops_get_their_own_answers(engine, rows):
    """A server under load would mix up whose text is whose."""
    alone = {
        name: engine.submit([TextRequest(row)])[0].result().clone() for name, row in rows.items()
    }
    names = list(rows) * 12

    def ask(name):
        return engine.submit([TextRequest(rows[name])])[0].result()

    async def aask():
        handles = [engine.submit([TextRequest(rows[name])])[0] for name in names]
        return await asyncio.gather(*(handle.aresult() for handle in handles))

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, names))
    for name, logits in [
        *zip(names, found, strict=True),
        *zip(names, asyncio.run(aask()), strict=True),
    ]:
        assert (logits - alone[name]).abs().max() < 1e-3


def test_what_cannot_be_read_is_refused(engine, base, experts, rows):
    too_long = TextRow((5,) * (base.context_length + 1), experts["names"])
    for row in (TextRow((), experts["names"]), too_long):
        with pytest.raises(InvalidInput, match="tokens, but"):
            engine.submit([TextRequest(row)])
    decoder = SharedBase.load(quantization="nf4")
    with pytest.raises(ModelNotFound, match="is a decoder"):
        EncoderEngine(decoder)
    with pytest.raises(ModelNotFound, match="is an encoder"):
        Engine(base)


def test_a_deadline_and_a_full_queue_are_told(base, experts, rows, tmp_path):
    """A caller would wait for ever."""
    engine = EncoderEngine.of(base)
    engine.close()
    with pytest.raises(EngineClosed):
        engine.submit([TextRequest(rows["names"])])
    engine = EncoderEngine(base, max_waiting=1)
    busy, go = threading.Event(), threading.Event()
    real = engine._encoder.forward

    def held(*args):
        busy.set()
        go.wait()
        return real(*args)

    engine._encoder.forward = held
    try:
        running = engine.submit([TextRequest(rows["names"])])[0]
        busy.wait()
        late = engine.submit([TextRequest(rows["names"], timeout=1e-6)])[0]
        with pytest.raises(EngineBusy):
            engine.submit([TextRequest(rows["names"])], patience=0)
        go.set()
        with pytest.raises(DeadlineExceeded):
            late.result()
        assert running.result().shape[1] == 5
    finally:
        go.set()
        engine.close()


def test_one_broken_text_does_not_take_the_batch_with_it(base, experts, rows):
    engine = EncoderEngine.of(base)
    bad = TextRow((base.model.config.vocab_size + 7,), experts["names"])
    engine.submit([TextRequest(rows["topics"])])[0].result()
    good, broken = engine.submit([TextRequest(rows["topics"]), TextRequest(bad)])
    assert good.result().shape == (2,)
    with pytest.raises(IndexError):
        broken.result()


def test_where_a_decoder_runs_its_thread_reads_the_texts(base, rows, base_nf4):
    """Two threads that multiply on one processor would slow each other down."""
    engine, decoder = EncoderEngine.of(base), Engine.of(base_nf4)
    threads = []
    real = engine._encoder.forward
    engine._encoder.forward = lambda *args: (
        threads.append(threading.current_thread().name) or real(*args)
    )
    try:
        stream = decoder.submit(Request((5, 6, 7), (), Sampling(max_tokens=24)))
        next(iter(stream))
        for _ in range(3):
            engine.submit([TextRequest(rows["names"])])[0].result()
        assert len(stream.result().tokens) > 1, "the stream goes on between texts"
        assert set(threads) == {"one4all-engine"}
        while (running := Engine.on(base.device)) is not None:  # other tests' as well
            running.close()
        threads.clear()
        engine.submit([TextRequest(rows["names"])])[0].result()
        assert threads == ["one4all-encoder"]
    finally:
        engine._encoder.forward = real


def test_an_expert_is_checked_against_the_base_that_it_was_made_for(base, experts, base_nf4):
    both = Library(experts["names"].folder.parent, [base_nf4.facts, base.facts])
    assert set(both.names) == set(experts)
    assert not len(Library(experts["names"].folder.parent, base_nf4.facts)), "none of them writes"
    with pytest.raises(UnfitExpert, match="was trained on"):
        Library(base=base_nf4.facts).add(experts["names"].folder)
