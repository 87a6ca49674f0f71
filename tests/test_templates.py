"""Answers of bases whose tokenizers say how they are read: reasoning, text and calls told apart."""

from functools import reduce
from operator import add as plus

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool

from one4all_lc import ChatExpert, One4All
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.reading import TextReader, read
from one4all_lc.experts.templates import TemplateReader
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_library

XML = {
    "start_anchor": "<|im_start|>assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "content": {},
        "tool_calls": {
            "open_pattern": r"<call=(?P<name>\w+)>",
            "close": "</call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<(?P<key>\w+)>(?P<value>.*?)</\1>"},
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
    },
}
"""A base that thinks and writes calls as tags."""

JSON = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "content": {},
        "tool_calls": {
            "open": "[CALLS]",
            "close": "[/CALLS]",
            "content": "json",
            "transform_each": True,
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{arguments}"},
            },
        },
    },
}
"""A base that writes all its calls as one list."""

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "number"}},
        },
    },
}

TOOLS_TEMPLATE = (
    "{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@tool
def add(a: int, b: float) -> float:
    """Add two numbers."""
    return a + b


def reader(template, prompt="<|im_start|>assistant\n"):
    return TemplateReader(template, prompt, [ADD], TextReader())


def facts(message):
    return (
        message.content,
        message.additional_kwargs.get("reasoning_content"),
        [(item["name"], item["args"]) for item in message.tool_calls],
        [(item["name"], item["args"]) for item in message.invalid_tool_calls],
    )


def streamed(template, pieces, *, ended=True):
    reading = reader(template)
    chunks = [chunk for piece in pieces for chunk in reading.push(piece)]
    return reduce(plus, [*chunks, *reading.finish(ended=ended)], AIMessageChunk(content=""))


ONE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "content": {"optional": False, "open_pattern": r"\[T\]", "close": "[/T]"},
        "tool_calls": {
            "open_pattern": r"\[C\]",
            "close_pattern": r"\[/C\]",
            "repeats": True,
            "content": "json",
        },
    },
}
"""A base whose marks are patterns, of which the parser is sure a character late."""

CALL = "<call=add><a>1</a><b>2.5</b></call>"

CASES = {
    "text": (XML, "  a < b\n", ("  a < b\n", None, [], [])),
    "thought": (XML, "<think>hm</think>\n\nyes", ("yes", "hm", [], [])),
    "only thought": (XML, "<think>hm, cut of", ("", "hm, cut of", [], [])),
    "call": (XML, CALL, ("", None, [("add", {"a": 1, "b": 2.5})], [])),
    "all": (
        XML,
        f"<think>so</think>\nLook:\n{CALL}\n{CALL}\n",
        ("Look:", "so", [("add", {"a": 1, "b": 2.5})] * 2, []),
    ),
    "list": (
        JSON,
        'Sure. [CALLS][{"name": "add", "arguments": {"a": 1}}, '
        '{"name": "add", "arguments": {"a": 2}}][/CALLS]',
        ("Sure.", None, [("add", {"a": 1}), ("add", {"a": 2})], []),
    ),
    "after a broken one": (
        ONE,
        '[C]{bad[/C]\n[C]{"name": "add", "arguments": {"a": 1}}[/C][T]done[/T]',
        ("done", None, [("add", {"a": 1})], [(None, "{bad}}")]),
    ),
    "nameless": (ONE, '[C]{"nam": "add"}[/C]', ("", None, [], [(None, '{"nam": "add"}}}')])),
    "no text": (ONE, "<think>2 <", ("", "2 <", [], [])),
    "broken": (
        JSON,
        "[CALLS]nonsense[/CALLS]<think>x</think>done",
        ("done", "x", [], [(None, "nonsense")]),
    ),
    "cut off": (
        JSON,
        '[CALLS][{"name": "add", "argu',
        ("", None, [], [(None, '[{"name": "add", "argu')]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_read_as_its_template_says_wherever_it_is_cut(name):
    """Reasoning would reach a reader, or a tool would run with other arguments when streaming."""
    template, text, expected = CASES[name]
    assert facts(read(reader(template), text)) == expected
    for i in range(len(text)):
        assert facts(streamed(template, [text[:i], text[i:]])) == expected, f"cut at {i}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (XML, "<call=add><a>1</a><b>2"),
        (ONE, '[C]{"name": "add", "arguments": {"a": 1'),
        (XML, CALL[:-3]),
    ],
)
def test_a_call_that_was_cut_off_is_invalid(template, text):
    """A payment would be made with the half of its amount that was written."""
    for message in (
        read(reader(template), text, ended=False),
        streamed(template, text, ended=False),
    ):
        assert message.tool_calls == []
        assert len(message.invalid_tool_calls) == 1
        assert message.content == ""


def test_a_call_that_ends_with_the_answer_counts():
    """Bases that close calls with the end token would call nothing."""
    message = read(reader(XML), "<call=add><a>1</a>")
    assert [item["args"] for item in message.tool_calls] == [{"a": 1}]


def test_a_reader_hands_out_no_more_pieces_than_it_is_given():
    """Callbacks would be called for each character of each answer."""
    pieces = ["<think>so ", "it is, ", "then</think>", "Yes, ", "of course it is."]
    reading = reader(XML)
    chunks = [chunk for piece in pieces for chunk in reading.push(piece)]
    assert len(chunks) <= len(pieces)


def test_a_broken_template_is_refused_in_a_sentence():
    """Every call would end in a parser's own error."""
    with pytest.raises(InvalidInput, match="response template cannot be used"):
        reader({"fields": {"content": {"opens": "x"}}})


def test_what_the_prompt_has_begun_is_read_on():
    """A template that opens the reasoning itself would show it all to the reader."""
    reading = reader(XML, "<|im_start|>user\nHi\n<|im_start|>assistant\n<think>\n")
    assert facts(read(reading, "hm</think>yes"))[:2] == ("yes", "hm")


@pytest.fixture
def ask():
    engines = []

    def make(answer, response_template=None, chat_template=TOOLS_TEMPLATE):
        engines.append(FakeEngine({"x": answer, "y": answer}))
        engines[-1].base.tokenizer.chat_template = chat_template
        if response_template:
            engines[-1].base.tokenizer.response_template = response_template
        return ChatExpert(engine=engines[-1], library=fake_library("x", "y"), model="x")

    yield make
    for engine in engines:
        engine.close()


def test_a_model_gives_reasoning_as_a_block_and_calls_of_the_bases_own_form(ask):
    """`content_blocks` would miss the reasoning; an agent on such a base would call nothing."""
    model = ask(f"<think>so</think>Look: {CALL}", XML).bind_tools([add])
    whole = model.invoke("one and two and a half?")
    pieces = list(model.stream("one and two and a half?"))
    for message in (whole, reduce(plus, pieces)):
        assert facts(message) == ("Look:", "so", [("add", {"a": 1, "b": 2.5})], [])
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["reasoning", "text", "tool_call"]
    assert model.bound.profile["reasoning_output"]
    assert len([piece for piece in pieces if "reasoning_content" in piece.additional_kwargs]) > 1


def test_only_one_call_if_more_are_not_wanted(ask):
    """An agent that takes one call at a time would get two."""
    model = ask(f"{CALL}{CALL}", XML).bind_tools([add], parallel_tool_calls=False)
    assert len(model.invoke("one and two and a half?").tool_calls) == 1


def test_a_form_comes_after_the_thought_that_a_prompt_has_begun(ask):
    """The object would stand in the thought, and the answer would be empty."""
    model = ask("{}", chat_template=TOOLS_TEMPLATE + "<think>\n{# </think> #}")
    seen = []
    submit = model.engine.submit
    model.engine.submit = lambda request, **rest: (seen.append(request), submit(request, **rest))[1]
    model.invoke("?", response_format={"type": "json_object"})
    model.invoke("?")
    forced, free = (model.engine.base.tokenizer.decode(request.prompt) for request in seen)
    assert forced.endswith("<think>\n\n</think>\n\n")
    assert free.endswith("<think>\n")


def test_an_answer_may_be_about_the_tag(ask):
    """The rest of such an answer would be gone."""
    model = ask("Write <think> first.", chat_template=TOOLS_TEMPLATE + "{# </think> #}")
    assert model.invoke("?").content == "Write <think> first."


def test_a_forced_call_is_enforced_on_such_a_base_as_well(ask):
    """A forced call in another form than the template's would be read as text."""
    model = ask("<think>no call at all</think>", XML).bind_tools([add], tool_choice="add")
    message = model.invoke("one and two?")
    assert [item["name"] for item in message.tool_calls] == ["add"]
    assert message.content == ""


@pytest.mark.asyncio
async def test_special_tokens_tell_the_parts_and_stay_out_of_the_text(ask):
    """A tokenizer whose marks are special tokens would lose them before they are read."""
    template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {"thinking": {"open": "<|im_start|>", "close": "|"}, "content": {}},
    }
    model = ask("<|im_start|>hm|yes", template)
    for message in (model.invoke("?"), await model.ainvoke("?")):
        assert facts(message)[:2] == ("yes", "hm")
    assert ask("<|im_start|>hm|yes").invoke("?").content == "hm|yes"


@pytest.mark.asyncio
async def test_a_base_that_thinks_in_tags_needs_no_response_template(ask):
    """A base such as Qwen3 would answer with its thoughts."""
    thinks = TOOLS_TEMPLATE + "{# </think> #}"
    model = ask("<think>hm</think>\n\nyes", chat_template=thinks)
    pieces = [piece async for piece in model.astream("?")]
    assert facts(reduce(plus, pieces))[:2] == facts(model.invoke("?"))[:2] == ("yes", "hm")
    begun = ask("hm</think>yes", chat_template=thinks + "<think>\n")
    assert facts(begun.invoke("?"))[:2] == ("yes", "hm")


def test_experts_that_are_consulted_hand_on_what_they_say_not_what_they_think(ask):
    """The one that writes the answer would read everybody's reasoning."""
    engine = ask("<think>hm</think>said", XML).engine
    library = fake_library("x", "y")
    router = SemanticRouter(library=library, embeddings=FakeEmbeddings())
    one = One4All(engine=engine, library=library, router=router, mode="all")
    answers = one.invoke("a question about x and y").response_metadata["answers"]
    assert set(answers.values()) == {"said"}
