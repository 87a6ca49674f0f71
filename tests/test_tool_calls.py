"""Tool calls are read out of any answer alike, enforced, shown to the base, and looped over."""

import json
from functools import reduce
from operator import add as plus

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from pydantic import BaseModel

from one4all_lc import ChatExpert
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.asking import _bound
from one4all_lc.experts.messages import prompt_of, to_turns
from one4all_lc.experts.reading import CallReader, read
from one4all_lc.experts.tool_calls import chosen
from one4all_lc.testing import FakeEngine, fake_library

NATIVE = (
    "{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
"""A chat template that renders tools, calls and results itself."""


def call(name="add", arguments='{"a": 1, "b": 2}'):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


@pytest.fixture
def ask():
    """Return a function that makes a model whose answers are given."""
    engines = []

    def make(answers, template=None):
        engines.append(FakeEngine(answers if callable(answers) else {"x": answers}))
        if template:
            engines[-1].base.tokenizer.chat_template = template
        return ChatExpert(engine=engines[-1], library=fake_library("x"), model="x")

    yield make
    for engine in engines:
        engine.close()


def facts(message):
    """What must not depend on how an answer comes; ids are made up each time."""
    calls = [(item["name"], item["args"]) for item in message.tool_calls]
    invalid = [(item["name"], (item["args"] or "").strip()) for item in message.invalid_tool_calls]
    return message.content, calls, invalid


def read_in(pieces):
    reader = CallReader()
    chunks = [chunk for piece in pieces for chunk in reader.push(piece)]
    return reduce(plus, [*chunks, *reader.finish()], AIMessageChunk(content=""))


ANSWERS = {
    "text": "a < b, and <tool is no call",
    "spaces": "  two\n\nlines \n",
    "one": call(),
    "several": call() + "\n" + call("now", "{}"),
    "before": "Let me see." + call(),
    "nested": call(arguments='{"a": {"b": [1, {"c": null}]}, "d": []}'),
    "braces": call(arguments='{"code": "if (a) { b = \\"}}\\"; } // {", "x": "}"}'),
    "foreign": call("say", '{"text": "你好, سلام, 👋🏽", "ключ": "é"}'),
    "none": call("now", "{}"),
    "unnamed": '<tool_call>\n{"name": "now"}\n</tool_call>',
    "compact": '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>',
    "reversed": '<tool_call>\n{"arguments": {"a": 1}, "name": "add"}\n</tool_call>',
    "broken": call(arguments='{"a": }'),
    "no json": "<tool_call>\nnonsense\n</tool_call>",
    "no object": call(arguments="[1]"),
    "no name": '<tool_call>\n{"foo": 1}\n</tool_call>',
}


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(text, id=name) for name, text in ANSWERS.items()),
        "Let me see.\n" + call(),
        call() + "\nThat is all, thank you.",
        "One.\n" + call() + "\nTwo, then.\n" + call("now", "{}") + "\nThree, then.",
    ],
)
def test_an_answer_is_read_alike_wherever_the_stream_cuts_it(text):
    """Streaming and `invoke` would tell an agent different things."""
    whole = facts(read(CallReader(), text))
    assert facts(read_in(text)) == whole
    for i in range(len(text)):
        assert facts(read_in([text[:i], text[i:]])) == whole, f"cut at {i}"


@pytest.mark.parametrize(
    ("name", "content", "calls"),
    [
        ("text", ANSWERS["text"], []),
        ("spaces", ANSWERS["spaces"], []),
        ("one", "", [("add", {"a": 1, "b": 2})]),
        ("several", "", [("add", {"a": 1, "b": 2}), ("now", {})]),
        ("before", "Let me see.", [("add", {"a": 1, "b": 2})]),
        ("nested", "", [("add", {"a": {"b": [1, {"c": None}]}, "d": []})]),
        ("braces", "", [("add", {"code": 'if (a) { b = "}}"; } // {', "x": "}"})]),
        ("foreign", "", [("say", {"text": "你好, سلام, 👋🏽", "ключ": "é"})]),
        ("none", "", [("now", {})]),
        ("unnamed", "", [("now", {})]),
        ("compact", "", [("add", {"a": 1})]),
        ("reversed", "", [("add", {"a": 1})]),
    ],
)
def test_text_and_calls_are_told_apart(name, content, calls):
    """A tool would run with other arguments than were written, or markup would reach a reader."""
    message = read(CallReader(), ANSWERS[name])
    assert facts(message) == (content, calls, [])
    assert len({item["id"] for item in message.tool_calls}) == len(calls), "results find their call"


@pytest.mark.parametrize("name", ["broken", "no json", "no object"])
def test_what_is_no_call_is_an_invalid_one(name):
    """A tool would run with made-up arguments, or the answer would vanish."""
    message = read(CallReader(), ANSWERS[name])
    assert not message.content
    assert not message.tool_calls
    (invalid,) = message.invalid_tool_calls
    assert invalid["args"].strip() in ANSWERS[name]
    assert invalid["id"]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "pay", "arguments": {"amount": 1000}',
        '<tool_call>\n{"name": "pay", "arguments": {"amount": 1',
        '<tool_call>\n{"na',
        "<tool_call>\n{",
        "<tool_call>\n",
    ],
)
def test_a_call_that_was_cut_off_is_invalid(text):
    """A stop text or the context's end in an amount of 1000 would pay 1."""
    for message in (read(CallReader(), text), read_in(text)):
        assert not message.tool_calls
        assert len(message.invalid_tool_calls) == 1


def test_words_before_and_after_calls_keep_their_spaces():
    """Words of a streamed answer would run together."""
    text = read_in(call() + "\nThe sum is three.").content
    assert text.strip() == "The sum is three."


def test_a_closing_tag_in_an_argument_is_text():
    """An agent that writes about tool calls would call with half an argument."""
    message = read(CallReader(), call("say", '{"text": "ends with </tool_call> here"}'))
    assert facts(message) == ("", [("say", {"text": "ends with </tool_call> here"})], [])


@pytest.mark.parametrize(
    ("choice", "names", "must"),
    [
        (None, ["add", "now"], False),
        (False, ["add", "now"], False),
        ("auto", ["add", "now"], False),
        ({"type": "auto"}, ["add", "now"], False),
        ("none", [], False),
        ({"type": "none"}, [], False),
        (True, ["add", "now"], True),
        ("any", ["add", "now"], True),
        ("required", ["add", "now"], True),
        ({"type": "any"}, ["add", "now"], True),
        ("now", ["now"], True),
        ({"type": "function", "function": {"name": "add"}}, ["add"], True),
        ({"type": "tool", "name": "add"}, ["add"], True),
    ],
)
def test_every_form_of_tool_choice_is_understood(choice, names, must):
    """A chain written for another provider would fail, or call what it must not."""
    tools, forced = chosen([add, now], choice)
    assert [item["function"]["name"] for item in tools] == names
    assert forced is must


def test_a_choice_that_cannot_be_is_refused_at_once(ask):
    """A misspelt name would be found in production, or never."""
    model = ask("hello")
    with pytest.raises(InvalidInput, match=r"'addd'.*\(add, now\)"):
        model.bind_tools([add, now], tool_choice="addd")
    with pytest.raises(InvalidInput, match="no tools"):
        model.invoke("x", tool_choice="any")
    with pytest.raises(InvalidInput, match=r"tool_choice is 'add'.*\(none\)"):
        model.invoke("x", tool_choice="add")


@pytest.mark.parametrize("answer", ["I would rather talk.", call("now", "{}"), ""])
def test_a_forced_call_is_that_call_whatever_the_model_would_say(ask, answer):
    """A chain that needs a call would get prose."""
    message = ask(answer).bind_tools([add, now], tool_choice="add").invoke("1 and 2?")
    (made,) = message.tool_calls
    assert made["name"] == "add"
    assert set(made["args"]) == {"a", "b"}
    assert all(isinstance(value, int) for value in made["args"].values())
    assert not message.content


def test_auto_leaves_text_as_it_is(ask):
    """Tools that are not needed would change an answer."""
    message = ask("Nothing to add: 3 < 4 {really}.").bind_tools([add]).invoke("x")
    assert facts(message) == ("Nothing to add: 3 < 4 {really}.", [], [])


def test_auto_reads_calls_and_holds_them_to_the_tools(ask):
    """An agent would be asked to run what does not exist, or with arguments of the wrong kind."""
    message = ask("Sure. " + call() + "\n" + call("now", "{}")).bind_tools([add, now]).invoke("x")
    assert facts(message)[1:] == ([("add", {"a": 1, "b": 2}), ("now", {})], [])
    assert message.content.strip() == "Sure."
    message = ask(call("rm", '{"a": "one"}')).bind_tools([add]).invoke("x")
    assert [item["name"] for item in message.tool_calls] == ["add"]
    assert not message.invalid_tool_calls


def test_parallel_calls_can_be_turned_off(ask):
    """A caller that can run one call at a time would get two."""
    model = ask(call() + "\n" + call("now", "{}"))
    assert len(model.bind_tools([add, now]).invoke("x").tool_calls) == 2
    one = model.bind_tools([add, now], parallel_tool_calls=False).invoke("x")
    assert len(one.tool_calls) == 1


def test_tools_that_may_not_be_called_are_not_shown(ask):
    """The model would be tempted by what it must not do."""
    seen = []
    model = ask(lambda asked: seen.append(asked.prompt) or "plain")
    assert model.bind_tools([add], tool_choice="none").invoke("x").text == "plain"
    assert "<tools>" not in seen[-1]


def test_no_tool_is_called_where_none_may_be(ask):
    """`tool_choice='none'` would call all the same."""
    bound = ask(call()).bind_tools([add], tool_choice="none")
    assert facts(bound.invoke("x")) == (call(), [], [])
    assert facts(reduce(plus, bound.stream("x"))) == (call(), [], [])


HISTORY = [
    HumanMessage("1 and 2?"),
    AIMessage("Adding.", tool_calls=[{"name": "add", "args": {"a": 1, "é": "ü"}, "id": "c1"}]),
    ToolMessage("3", tool_call_id="c1", name="add"),
    ToolMessage([{"type": "text", "text": "no "}, "luck"], tool_call_id="c2", status="error"),
]


def test_a_template_without_tools_reads_calls_and_results_as_text(ask):
    """The model would not see what it has called, nor what came of it."""
    model = ask("ok")
    tokenizer = model.engine.base.tokenizer
    known, _ = chosen([add], None)
    text = tokenizer.decode(prompt_of(tokenizer, HISTORY, "Be kind.", tools=known))
    assert text.index("Be kind.") < text.index("<tools>") < text.index("1 and 2?")
    assert json.dumps(known[0]["function"]) in text
    assert 'Adding.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "é": "ü"}}' in text
    assert "<tool_response>\n3\n</tool_response>\n<tool_response>\nError: no luck\n" in text
    roles = [turn["role"] for turn in to_turns(HISTORY)]
    assert roles == ["user", "assistant", "user"], "templates insist on alternation"


def test_a_template_that_knows_tools_renders_them_itself(ask):
    """A base trained on its own format would read a foreign one."""
    seen = []
    model = ask(lambda asked: seen.append(asked.prompt) or "ok", NATIVE)
    assert model.bind_tools([add]).invoke(HISTORY).content == "ok"
    assert '[TOOLS][{"type": "function", "function": {"name": "add"' in seen[-1]
    assert '<|im_start|>assistant\nAdding.<tool_call>add {"a": 1, "é": "ü"}<|im_end|>' in seen[-1]
    assert "<|im_start|>tool\n3<|im_end|>\n<|im_start|>tool\nError: no luck<|im_end|>" in seen[-1]
    assert "<tools>" not in seen[-1]
    assert "<tool_response>" not in seen[-1]


@pytest.mark.parametrize("answer", [call(), call() + "\n" + call("now", "{}"), "Hm. " + call()])
async def test_a_streamed_call_adds_up_to_what_invoke_returns(ask, answer):
    """An interface that shows calls as they come would show other ones than are run."""
    bound = ask(answer).bind_tools([add, now])
    whole = bound.invoke("x")
    chunks = list(bound.stream("x"))
    parts = [part for chunk in chunks for part in chunk.tool_call_chunks]
    assert parts[0]["name"] == "add"
    assert sum(bool(part["args"]) for part in parts) > 3, "arguments come as they are written"
    assert facts(reduce(plus, chunks)) == facts(whole)
    later = [chunk async for chunk in bound.astream("x")]
    assert facts(reduce(plus, later)) == facts(whole) == facts(await bound.ainvoke("x"))


async def test_an_agent_calls_a_tool_and_answers_with_its_result(ask):
    """The loop that everybody builds with tools would not run, or never end."""

    def answer(asked):
        result = asked.prompt.rpartition("<tool_response>\n")[2].partition("\n")[0]
        return f"It is {result}." if "<tool_response>" in asked.prompt else call()

    for template in (None, NATIVE.replace("<tool_call>", "<tool_call><tool_response>\nnative\n")):
        agent = create_agent(ask(answer, template), [add, now])
        asked = {"messages": [("human", "1 and 2?")]}
        for state in (agent.invoke(asked), await agent.ainvoke(asked)):
            kinds = [message.type for message in state["messages"]]
            assert kinds == ["human", "ai", "tool", "ai"]
            assert state["messages"][2].content == "3"
            said = state["messages"][3].content
            assert said == ("It is native." if template else "It is 3.")


def test_an_agent_with_tools_answers_in_a_form(ask):
    """Else tools would be out of reach as soon as an answer must have a form."""

    class Sum(BaseModel):
        total: int

    def answer(asked):
        return '{"total": 3}' if "<tool_response>" in asked.prompt else call()

    agent = create_agent(ask(answer), [add], response_format=Sum)
    state = agent.invoke({"messages": [("human", "1 and 2?")]})
    assert [message.type for message in state["messages"]][:3] == ["human", "ai", "tool"]
    assert state["structured_response"] == Sum(total=3)


def test_a_model_in_the_engines_place_gets_the_tools(ask):
    """A larger model as a fallback could not call what was bound."""
    bound = _bound(ask(call()), ["never"], {"tools": [add], "tool_choice": "any"})
    assert [item["name"] for item in bound.invoke("1 and 2?").tool_calls] == ["add"]
    assert _bound(RunnableLambda(len), None, {}).invoke("four") == 4
