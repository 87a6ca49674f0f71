"""Answers of a given form: always valid, on a small base, beside others that are free."""

import itertools
import json
import random
import re

import jsonschema
import pytest

from one4all_lc.engine.grammar import Grammar
from one4all_lc.engine.request import Request
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.tool_calls import calling
from one4all_lc.sampling import Sampling
from one4all_lc.testing import FakeEngine
from tests.asking import engine_with, prompt_of
from tests.prompts import PROMPTS

SCHEMAS = 200
NAMES = ("name", "âge", "نام", "city", "größe", "tags", "数", "is_open", "total", "note")
WORDS = ("rouge", "سبز", "blue", "naïve", "東京", "x")
PATTERNS = (r"^[a-z]{2,5}$", r"^\\d{4}-\\d{2}$", r"^(foo|bar)+$", r"^[A-Z][a-z]*$")


def random_schema(draw, depth=3):
    """A schema as users write them: objects, arrays, enums, unions, patterns, any script."""
    kinds = [_string, _pattern, _number, _enum, _constant]
    if depth:
        kinds += [_object, _object, _array, _union]
    return draw.choice(kinds)(draw, depth - 1)


def _string(draw, _):
    return {"type": "string", **draw.choice([{}, {"maxLength": 9}, {"minLength": 2}])}


def _pattern(draw, _):
    return {"type": "string", "pattern": draw.choice(PATTERNS)}


def _number(draw, _):
    kind = draw.choice(["integer", "number"])
    return {"type": kind, **draw.choice([{}, {"minimum": 3}, {"minimum": -5, "maximum": 17}])}


def _enum(draw, _):
    return {"enum": draw.sample(WORDS, 3)}


def _constant(draw, _):
    return draw.choice([{"type": "boolean"}, {"type": "null"}, {"const": draw.choice(WORDS)}])


def _object(draw, depth):
    names = draw.sample(NAMES, draw.randint(1, 4))
    properties = {name: random_schema(draw, max(0, depth)) for name in names}
    required = draw.sample(names, draw.randint(0, len(names)))
    closed = draw.choice([{}, {"additionalProperties": False}])
    return {"type": "object", "properties": properties, "required": required, **closed}


def _array(draw, depth):
    bounds = draw.choice([{}, {"minItems": 1}, {"minItems": 2, "maxItems": 3}])
    return {"type": "array", "items": random_schema(draw, max(0, depth)), **bounds}


def _union(draw, depth):
    return {"anyOf": [random_schema(draw, max(0, depth)) for _ in range(2)]}


def schemas():
    draw = random.Random(7)
    return [random_schema(draw) for _ in range(SCHEMAS)]


def test_200_schemas_give_200_valid_answers_beside_free_ones(base_nf4):
    forms, questions, free = schemas(), itertools.cycle(PROMPTS), Sampling(max_tokens=8)
    with engine_with(base_nf4) as engine:
        formed, plain = [], []
        for i, form in enumerate(forms):
            prompt = prompt_of(base_nf4, next(questions), None)
            settings = Sampling(max_tokens=24, temperature=0.8 * (i % 2), seed=i)
            grammar = Grammar.json_schema(form)
            formed.append(engine.submit(Request(prompt, (), settings, None, grammar)))
            if i % 8 == 0:
                plain.append((prompt, engine.submit(Request(prompt, (), free))))
        wrong = []
        for form, handle in zip(forms, formed, strict=True):
            text = handle.result().text
            try:
                jsonschema.validate(json.loads(text), form)
            except (ValueError, jsonschema.ValidationError) as error:
                wrong.append((form, text[:60], text[-60:], str(error)[:80]))
        assert not wrong
        alone = [engine.submit(Request(prompt, (), free)).result().tokens for prompt, _ in plain]
        together = [handle.result().tokens for _, handle in plain]
    assert together == alone, "free answers do not depend on those of a form"


@pytest.fixture
def fake():
    engine = FakeEngine(lambda asked: "a ] } long answer " * 40)
    yield engine
    engine.close()


def answer(engine, grammar, **settings):
    prompt = tuple(engine.base.tokenizer.encode("ask"))
    sampling = Sampling(**{"max_tokens": 20, **settings})
    return engine.submit(Request(prompt, (), sampling, None, grammar)).result(10)


def test_an_answer_that_runs_out_of_tokens_is_brought_to_its_end(fake):
    text = {"type": "string"}
    form = {
        "type": "object",
        "properties": {"a": text, "b": {"type": "array", "items": text}, "c": text},
        "required": ["a", "b", "c"],
    }
    ended = answer(fake, Grammar.json_schema(form))
    jsonschema.validate(json.loads(ended.text), form)
    assert ended.finish_reason == "length"
    assert len(ended.tokens) < 60


def test_an_object_has_no_members_that_its_schema_does_not_name(fake):
    form = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert set(json.loads(answer(fake, Grammar.json_schema(form)).text)) <= {"a"}
    joined = {"allOf": [form, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}
    assert json.loads(answer(fake, Grammar.json_schema(joined)).text)["b"] is None


def test_regular_expressions_and_grammars(fake):
    assert re.fullmatch(r"\d{3}-x", answer(fake, Grammar.regex(r"\d{3}-x")).text)
    assert answer(fake, Grammar.lark('start: "yes" | "no"')).text in ("yes", "no")


def test_a_form_wins_over_min_tokens(fake):
    assert answer(fake, Grammar.regex("ab"), min_tokens=9).text == "ab"


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"type": "strnig"}),
        Grammar.regex("(unclosed"),
        Grammar.lark("begin: 1"),
        Grammar.json_schema({"type": "string", "pattern": "(?=ahead)"}),
    ],
)
def test_what_cannot_be_enforced_is_refused_at_once(fake, grammar):
    with pytest.raises(InvalidInput, match="cannot be enforced"):
        answer(fake, grammar)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 0.1}, {"repetition_penalty": 3.0}])
def test_what_is_likeliest_may_not_be_what_may_come(fake, settings):
    """Else nothing would be left to draw from, and the request would fail."""
    form = Grammar.json_schema({"type": "array", "items": {"type": "integer"}, "minItems": 2})
    drawn = answer(fake, form, temperature=0.9, seed=1, **settings)
    assert len(json.loads(drawn.text)) >= 2


def test_quotes_before_a_call_do_not_keep_it_from_its_end():
    """A screen of 5" in the text would look like an open string for the rest of the answer."""
    words = 'a 5" screen <tool_call>\n{"name": "note", "arguments": {"text": "' + "so ] } on " * 30
    engine = FakeEngine(lambda asked: words)
    parameters = {"type": "object", "properties": {"text": {"type": "string"}}}
    tool = {"function": {"name": "note", "parameters": parameters | {"required": ["text"]}}}
    ended = answer(engine, calling([tool], must=False), max_tokens=90)
    engine.close()
    assert ended.text.rstrip().endswith("</tool_call>")
    assert len(ended.tokens) < 150


def test_where_the_context_ends_half_of_what_is_left_is_answered(fake):
    room = fake.base.context_length
    prompt = tuple(fake.base.tokenizer.encode("a" * (room - 200)))
    plain = Grammar.lark("start: /(.|\\n)*/")
    ended = fake.submit(Request(prompt, (), Sampling(max_tokens=150), None, plain)).result(10)
    assert len(ended.text) >= 99
    assert ended.finish_reason == "length"
