"""Encoder experts as Runnables: what they find, however they are asked, and where it is used."""

import operator
import pickle

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import ToolException
from langgraph.graph import END, START, MessagesState, StateGraph

from one4all_lc import InvalidInput, Library, SharedBase
from one4all_lc.base.loading import DEFAULT_ENCODER
from one4all_lc.cli.direction import isolated, shown
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.experts.text import (
    ClassifyExpert,
    Entities,
    Entity,
    TagExpert,
    text_expert,
)
from one4all_lc.experts.text.asking import input_of
from one4all_lc.experts.text.classify import decided
from one4all_lc.experts.text.extract import best_span
from one4all_lc.experts.text.reading import Tokenizing, Window
from one4all_lc.experts.text.tag import entities_of, first_tokens, words_of
from one4all_lc.head import HeadFacts
from tests.encoders import five
from tests.experts import write_expert

PERSIAN = "علی دایی در اردبیل به دنیا آمد و در تهران بازی می‌کرد."
ASKED = {
    "sentiment": [PERSIAN, "La batterie est nulle.", "The battery is great."],
    "topics": [PERSIAN, "La batterie est nulle.", "The battery is great."],
    "names": [PERSIAN, "Victor Hugo est né à Besançon.", "Ali lives in Berlin."],
    "reader": [
        {"question": "علی دایی کجا به دنیا آمد؟", "context": PERSIAN},
        {"question": "Où ?", "context": ["Victor Hugo.", "Il est né à Besançon."]},
        {"question": "Where?", "documents": [Document("In Berlin.", metadata={"source": "x"})]},
    ],
    "inference": [
        {"premise": PERSIAN, "hypothesis": "علی دایی فوتبالیست است."},
        ("Il pleut.", "Il fait beau."),
        {"premise": "A phone is red.", "hypothesis": "All phones are black."},
    ],
}


@pytest.fixture(scope="module")
def engine():
    base = SharedBase.load(DEFAULT_ENCODER, quantization="none", dtype=torch.float32)
    made = EncoderEngine.of(base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def library(engine, tmp_path_factory):
    five(folder := tmp_path_factory.mktemp("five"), engine.base.facts)
    return Library(folder, engine.base.facts)


@pytest.fixture(scope="module")
def readers(engine, library):
    return {name: text_expert(engine=engine, library=library, model=name) for name in library.names}


def alike(one, other):
    """Whether two results say the same up to rounding."""
    a, b = one.model_dump(), other.model_dump()
    return a.keys() == b.keys() and all(
        a[key] == pytest.approx(b[key], abs=1e-3) if not isinstance(a[key], list) else True
        for key in a
    )


async def test_every_way_of_asking_finds_the_same(readers):
    """What is found would depend on who asks."""
    for name, inputs in ASKED.items():
        reader = readers[name]
        alone = [reader.invoke(item) for item in inputs]
        ways = [
            reader.batch(inputs),
            await reader.abatch(inputs),
            [await reader.ainvoke(item) for item in inputs],
            [next(iter(reader.stream(item))) for item in inputs],
        ]
        for found in ways:
            for one, other in zip(alone, found, strict=True):
                assert type(one) is type(other)
                assert alike(one, other)


def test_a_batch_is_one_forward(readers, engine):
    before = engine.stats().steps
    readers["sentiment"].batch([f"text {i}" for i in range(32)])
    assert engine.stats().steps == before + 1


def test_what_fails_in_a_batch_fails_alone(readers):
    found = readers["reader"].batch([{"question": "x"}, ASKED["reader"][0]], return_exceptions=True)
    assert isinstance(found[0], InvalidInput)
    assert found[1].probability > 0
    with pytest.raises(InvalidInput, match="context"):
        readers["reader"].batch([{"question": "x"}, ASKED["reader"][0]])


def test_labels_and_abstention():
    """A label that is a guess would be taken for knowledge."""

    class Card:
        labels = ("a", "b", "c")

    class Expert:
        card = Card

    logits = [np.log(np.array([0.6, 0.3, 0.1], np.float32))]
    facts = HeadFacts(sha256="", threshold=0.5)
    sure = decided(logits, Expert, facts)
    assert (sure.label, sure.labels, sure.abstained) == ("a", ["a"], False)
    assert sure.probability == pytest.approx(0.6)
    assert sure.said() == "a (60%)"
    unsure = decided(logits, Expert, HeadFacts(sha256="", threshold=0.7))
    assert (unsure.label, unsure.labels, unsure.abstained) == (None, [], True)
    assert unsure.said() == "undecided; nearest is a (60%)"
    several = decided([np.array([2.0, 1.0, -3.0])], Expert, HeadFacts(sha256="", several=True))
    assert several.labels == ["a", "b"]
    assert sum(several.probabilities.values()) > 1.5
    parts = decided([np.array([2.0, 0, 0]), np.array([0, 6.0, 0])], Expert, facts)
    assert parts.label == "b", "every part of a long text counts"


def test_entities_stand_where_they_say(readers):
    for text in ASKED["names"]:
        for entity in readers["names"].invoke(text).entities:
            assert text[entity.start : entity.end] == entity.text
            assert entity.text.strip() == entity.text


def test_words_keep_half_spaces_and_diacritics_and_their_first_token_tags_them(engine):
    """An entity would be cut within a Persian word."""
    text = "می‌رود، l'été «مُحمّد»!"
    words = [text[start:end] for start, end in words_of(text)]
    assert words == ["می‌رود", "،", "l", "'", "été", "«", "مُحمّد", "»", "!"]
    tokens = Tokenizing.of(engine.base).tokens(text)
    firsts = first_tokens(tokens, words_of(text))
    assert None not in firsts
    assert firsts == sorted(firsts)
    for word, first in zip(words_of(text), firsts, strict=True):
        start, end = tokens.offsets[first]
        assert start < word[1]
        assert end > word[0]


def test_tags_become_entities():
    text = "Ali Daei in Tehran Iran"
    words = words_of(text)
    tags = [("B-PER", 0.9), ("I-PER", 0.8), ("O", 1.0), ("I-LOC", 0.7), ("B-LOC", 0.6)]
    found = entities_of(text, words, tags)
    assert [(item.text, item.label, item.probability) for item in found] == [
        ("Ali Daei", "PER", 0.8),
        ("Tehran", "LOC", 0.7),
        ("Iran", "LOC", 0.6),
    ]


def test_an_answer_stands_where_it_says_and_names_its_source(readers):
    for asked in ASKED["reader"]:
        given = asked.get("context", asked.get("documents"))
        texts = [given] if isinstance(given, str) else given
        found = readers["reader"].invoke(asked)
        if found.answer is None:
            assert found.score <= 0
            continue
        text = texts[found.source]
        text = text if isinstance(text, str) else text.page_content
        assert text[found.start : found.end] == found.answer


def test_the_best_span_is_compared_with_no_answer():
    logits = np.zeros((8, 2), np.float32)
    logits[0], logits[4, 0], logits[6, 1], logits[3, 1] = 1.0, 5.0, 4.0, 7.0
    window = Window(tuple(range(8)), (), range(10, 14), 3)
    score, first, last = best_span(logits, window)
    assert (score, first, last) == (7.0, 11, 13), "an end before its start does not count"


def test_windows_cover_a_long_text_with_the_question_in_each(engine):
    """What stands at the end of a long document would never be found."""
    tokenizing = Tokenizing.of(engine.base)
    question = tokenizing.tokens("Where was he born?")
    text = tokenizing.tokens("He was born somewhere. " * 400)
    windows = tokenizing.windows(text, before=question)
    assert len(windows) > 3
    covered = {i for window in windows for i in window.part}
    assert covered == set(range(len(text.ids)))
    for window in windows:
        own = window.tokens[window.first : window.first + len(window.part)]
        assert own == text.ids[window.part.start : window.part.stop]
        assert len(window.tokens) <= engine.base.context_length
        assert window.tokens[1 : 1 + len(question.ids)] == question.ids
    with pytest.raises(InvalidInput, match="shorten it"):
        tokenizing.windows(text, before=text)


def test_a_long_text_is_read_to_its_end(readers):
    tail = " ".join(["Ali lives in Berlin."] * 300)
    found = readers["names"].invoke(tail)
    assert found.entities, "a random tagger tags something"
    assert max(item.end for item in found.entities) > len(tail) * 0.8
    assert readers["sentiment"].read(tail).tokens > 1500
    assert sum(readers["sentiment"].invoke(tail).probabilities.values()) == pytest.approx(1)


def test_what_cannot_be_asked_is_refused(engine, library, readers):
    with pytest.raises(InvalidInput, match="ClassifyExpert asks those of kind classify"):
        ClassifyExpert(engine=engine, library=library, model="names")
    for name, asked in {
        "sentiment": "  ",
        "names": {"text": ""},
        "inference": "one text",
        "reader": {"question": "x", "context": ["", "  "]},
    }.items():
        with pytest.raises(InvalidInput):
            readers[name].invoke(asked)
    with pytest.raises(InvalidInput, match="int: give texts or LangChain Documents"):
        readers["reader"].invoke({"question": "x", "context": [7]})


def test_a_new_version_answers_from_the_next_call_on(engine, library, readers, tmp_path):
    changed = write_expert(
        tmp_path / "sentiment",
        engine.base.facts,
        seed=99,
        kind="classify",
        labels=("bad", "good"),
    )
    old = library["sentiment"]
    before = readers["sentiment"].invoke("fine")
    library.replace(changed)
    assert set(readers["sentiment"].invoke("fine").probabilities) == {"bad", "good"}
    library.replace(old.folder)
    assert alike(readers["sentiment"].invoke("fine"), before)


async def test_as_a_tool_of_an_agent(readers):
    """An agent would have to read prose to know what was found."""
    tool = readers["inference"].as_tool()
    assert tool.name == "ask_inference"
    assert set(tool.args) == {"premise", "hypothesis"}
    call = {
        "name": tool.name,
        "args": {"premise": "It rains.", "hypothesis": "The sun shines."},
        "id": "1",
        "type": "tool_call",
    }
    for message in (tool.invoke(call), await tool.ainvoke(call)):
        assert message.artifact["expert"] == "inference"
        assert message.artifact["result"]["label"] in message.content
    reader = readers["reader"].as_tool(name="read")
    with pytest.raises(ToolException, match="no text to find"):
        reader.invoke({"question": "Where?", "context": " "})


def test_in_a_chain_over_retrieved_documents(readers):
    """An answer without its source could not be checked."""
    documents = [
        Document("Berlin is a city.", metadata={"source": "a.txt"}),
        Document("Ali was born in Ardabil.", metadata={"source": "b.txt"}),
    ]
    retriever = RunnableLambda(lambda _: documents)
    chain = {"question": RunnablePassthrough(), "documents": retriever} | readers["reader"]
    found = chain.invoke("Where was Ali born?")
    if found.answer is not None:
        assert found.metadata == documents[found.source].metadata
        assert found.metadata["source"] in found.said()


async def test_as_the_router_of_a_graph(readers):
    sentiment = readers["sentiment"]

    def note(name):
        return lambda state: {"messages": [HumanMessage(name)]}

    graph = StateGraph(MessagesState)
    labels = ["negative", "positive", "mixed"]
    for label in labels:
        graph.add_node(label, note(label))
        graph.add_edge(label, END)
    graph.add_conditional_edges(START, sentiment | operator.attrgetter("label"), labels)
    built = graph.compile()
    expected = sentiment.invoke("The battery is great.").label
    asked = {"messages": [("human", "The battery is great.")]}
    assert built.invoke(asked)["messages"][-1].text == expected
    assert (await built.ainvoke(asked))["messages"][-1].text == expected


def test_an_expert_is_pickled_onto_the_engine_of_its_base(readers):
    again = pickle.loads(pickle.dumps(readers["names"]))
    assert isinstance(again, TagExpert)
    assert again.engine.base.facts.id == DEFAULT_ENCODER
    assert isinstance(again.invoke("Ali"), Entities)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("classify", "a\nb", "a\nb"),
        ("pair", "It rains.\nIt is wet.", {"premise": "It rains.", "hypothesis": "It is wet."}),
        ("pair", "باران می‌بارد. هوا خوب است.", ("باران می‌بارد.", "هوا خوب است.")),
        ("pair", "Premise: A.\nHypothesis: B.", ("A.", "B.")),
        ("extract", "He was born in Rome.\n\nWhere?", ("Where?", "He was born in Rome.")),
        ("extract", "علی در اردبیل است. علی کجاست؟", ("علی کجاست؟", "علی در اردبیل است.")),
        (
            "extract",
            "Où est-il ? Il est à Rome. Il dort.",
            ("Où est-il ?", "Il est à Rome.\nIl dort."),
        ),
        ("extract", "one\ntwo", ("two", "one")),
    ],
)
def test_a_message_is_read_as_the_kind_needs_it(kind, text, expected):
    """A question typed into a terminal has no fields."""
    if isinstance(expected, tuple):
        names = {"pair": ("premise", "hypothesis"), "extract": ("question", "context")}[kind]
        expected = dict(zip(names, expected, strict=True))
    assert input_of(kind, text) == expected


def test_a_message_that_lacks_what_the_kind_needs_is_refused():
    for kind in ("pair", "extract"):
        with pytest.raises(InvalidInput, match="give"):
            input_of(kind, "Where?")


def test_right_to_left_text_is_isolated_where_it_is_mixed():
    """A terminal would draw the place of a Persian name on its wrong side."""
    entity = Entity(text="علی", label="PER", start=0, end=3, probability=1.0)
    assert shown(Entities(entities=[entity]).said) == "\u2068علی\u2069: PER [0:3]"
    assert shown(lambda quote: quote("علی دایی")) == "علی دایی", "its own side, alone in its line"
    assert isolated("Ali") == "Ali"
    assert shown(lambda quote: f"{quote('علی')}\n{quote('Ali')}") == "علی\nAli"
