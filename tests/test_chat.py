"""An expert behaves like any LangChain chat model, in sync and async, alone and in chains."""

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import ChatMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from one4all_lc.engine.engine import Engine
from one4all_lc.errors import InvalidInput, UnknownExpert
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.experts.messages import render, to_turns
from one4all_lc.library import Library

QUESTION = "Tell me a short story about a fox."


@pytest.fixture
def library(base_nf4, make_expert):
    library = Library(None, base_nf4.facts)
    library.add(make_expert("law", base_nf4.facts, seed=21))
    cooking = {"system_prompt": "You are a cook.", "generation": {"max_tokens": 7}}
    library.add(make_expert("cooking", base_nf4.facts, seed=22, **cooking))
    return library


@pytest.fixture
def law(base_nf4, library):
    return ChatExpert(engine=Engine.of(base_nf4), library=library, model="law", max_tokens=12)


async def test_every_way_of_asking_gives_the_same_answer(law):
    whole = law.invoke(QUESTION)
    assert whole.text
    assert (await law.ainvoke(QUESTION)).text == whole.text
    assert "".join(chunk.text for chunk in law.stream(QUESTION)) == whole.text
    assert "".join([chunk.text async for chunk in law.astream(QUESTION)]) == whole.text
    assert [message.text for message in law.batch([QUESTION] * 3)] == [whole.text] * 3
    assert [message.text for message in await law.abatch([QUESTION] * 3)] == [whole.text] * 3


async def test_answers_come_token_by_token(law):
    assert sum(bool(chunk.text) for chunk in law.stream(QUESTION)) > 3
    assert len([chunk async for chunk in law.astream(QUESTION) if chunk.text]) > 3


def test_usage_is_counted_once_streamed_or_not(law):
    usage = law.invoke(QUESTION).usage_metadata
    streamed = None
    for chunk in law.stream(QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.usage_metadata == usage
    assert usage["output_tokens"] == 12
    assert usage["input_tokens"] > 10


def test_the_answer_says_who_gave_it(law, library):
    metadata = law.invoke(QUESTION).response_metadata
    assert metadata["model_name"] == metadata["expert"] == "law"
    assert metadata["version"] == 1
    assert metadata["identity"] == library["law"].identity
    assert metadata["finish_reason"] == "length"


def test_one_call_may_ask_another_expert(law):
    other = law.invoke(QUESTION, model="cooking")
    assert other.response_metadata["expert"] == "cooking"
    assert other.text != law.invoke(QUESTION).text
    assert law.bind(model="base").invoke(QUESTION).response_metadata["expert"] == "base"
    with pytest.raises(UnknownExpert, match="law, cooking, base"):
        law.invoke(QUESTION, model="sqll")


def test_settings_come_from_the_card_then_the_model_then_the_call(base_nf4, library):
    engine = Engine.of(base_nf4)
    cook = ChatExpert(engine=engine, library=library, model="cooking")
    assert cook.invoke(QUESTION).usage_metadata["output_tokens"] == 7
    longer = ChatExpert(engine=engine, library=library, model="cooking", max_tokens=9)
    assert longer.invoke(QUESTION).usage_metadata["output_tokens"] == 9
    assert longer.invoke(QUESTION, max_tokens=3).usage_metadata["output_tokens"] == 3
    assert (
        cook.invoke(QUESTION).usage_metadata["input_tokens"]
        != (cook.invoke(QUESTION, model="law").usage_metadata["input_tokens"])
    ), "the card's system prompt is part of the prompt"


def test_a_stop_text_ends_the_answer(law):
    whole = law.invoke(QUESTION).text
    stop = whole[5:9]
    assert law.invoke(QUESTION, stop=[stop]).text == whole[: whole.index(stop)]
    assert "".join(c.text for c in law.stream(QUESTION, stop=[stop])) == whole[: whole.index(stop)]


def test_a_stop_text_may_be_given_bare_and_stream_as_langchain_does(law):
    whole = law.invoke(QUESTION).text
    assert law.invoke(QUESTION, stop=whole[5:9]).text == whole[: whole.index(whole[5:9])]
    assert law.invoke(QUESTION, stream=True).text == whole


def test_a_batch_fills_the_engines_rows(law, monkeypatch):
    """LangChain's own default follows the cores: six threads here, and most rows empty."""
    rows = []
    real = law.engine._decoder.forward
    monkeypatch.setattr(
        law.engine._decoder, "forward", lambda r, a: rows.append(len(r)) or real(r, a)
    )
    assert len(law.batch([QUESTION] * 16)) == 16
    assert max(rows) == 16
    rows.clear()
    law.batch([QUESTION] * 4, {"max_concurrency": 2})
    assert max(rows) == 2


def test_a_cache_never_gives_one_experts_answer_as_anothers(base_nf4, library):
    """LangChain's default key is the same for all: B would answer with A's words."""
    engine = Engine.of(base_nf4)
    law, cooking = (
        ChatExpert(engine=engine, library=library, model=name, max_tokens=6)
        for name in ("law", "cooking")
    )
    set_llm_cache(InMemoryCache())
    try:
        first = law.invoke(QUESTION)
        assert cooking.invoke(QUESTION).text != first.text
        assert law.invoke(QUESTION, model="cooking").text != first.text
        assert law.invoke(QUESTION).text == first.text
    finally:
        set_llm_cache(None)


def test_a_consumer_that_stops_reading_frees_the_row(law):
    stream = law.stream(QUESTION, max_tokens=4000)
    next(stream)
    stream.close()
    assert law.invoke(QUESTION).text
    assert not law.engine._scheduler.running


def test_it_composes_in_lcel(law):
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    chain = prompt | law | StrOutputParser()
    assert chain.invoke({"question": QUESTION}) == law.invoke(QUESTION).text
    assert len(list(chain.stream({"question": QUESTION}))) > 3


@pytest.mark.parametrize("question", ["", "   ", [SystemMessage("Be brief.")]])
def test_an_empty_question_is_refused(law, question):
    with pytest.raises(InvalidInput, match="empty"):
        law.invoke(question)


def test_a_question_too_long_is_refused_with_both_numbers(law):
    with pytest.raises(InvalidInput, match=r"tokens, but .* reads 8,192"):
        law.invoke("why " * 25_000)


def test_settings_that_nobody_knows_are_refused(law, base_nf4):
    with pytest.raises(InvalidInput, match="does not take temprature"):
        law.invoke(QUESTION, temprature=1)
    with pytest.raises(UnknownExpert):
        ChatExpert(engine=Engine.of(base_nf4), model="law")
    with pytest.raises(ValueError, match="temperature is -1"):
        ChatExpert(engine=Engine.of(base_nf4), temperature=-1)


def test_neighbours_of_one_role_are_merged_and_system_messages_come_first():
    turns = to_turns(
        [
            HumanMessage("a"),
            SystemMessage("be brief"),
            ChatMessage("b", role="user"),
            ChatMessage("c", role="assistant"),
            HumanMessage("d"),
        ],
        "You know the law.",
    )
    assert turns == [
        {"role": "system", "content": "You know the law.\n\nbe brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (ChatMessage("b", role="narrator"), "ChatMessage"),
        (HumanMessage([{"type": "image", "url": "x"}]), "block of type 'image'"),
    ],
)
def test_what_has_no_place_in_a_turn_is_refused(message, words):
    with pytest.raises(InvalidInput, match=words):
        to_turns([HumanMessage("a"), message])


def test_a_template_that_refuses_a_conversation_is_quoted(base_nf4, monkeypatch):
    strict = "{{ raise_exception('only one turn') }}"
    monkeypatch.setattr(base_nf4.tokenizer, "chat_template", strict)
    with pytest.raises(InvalidInput, match="only one turn"):
        render(base_nf4.tokenizer, to_turns([HumanMessage("Hello?")]))


def test_a_base_without_a_chat_template_is_asked_in_plain_text(base_nf4, monkeypatch):
    monkeypatch.setattr(base_nf4.tokenizer, "chat_template", None)
    ids = render(base_nf4.tokenizer, to_turns([HumanMessage("Hello?")], "Be kind."))
    assert base_nf4.tokenizer.decode(ids) == "Be kind.\n\nHello?\n\n"
