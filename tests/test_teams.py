"""Teams of experts that write and experts that decide: one router, one chat model, one terminal."""

import json
from functools import reduce
from operator import add

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage

from one4all_lc import (
    InvalidInput,
    Library,
    One4All,
    SemanticRouter,
    SharedBase,
    UnfitExpert,
    expert_tools,
)
from one4all_lc.agents import ExpertRouterMiddleware
from one4all_lc.base.loading import DEFAULT_ENCODER
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.engine import Engine
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.testing import FakeEmbeddings
from tests.encoders import KINDS
from tests.experts import write_expert

EXEMPLARS = {
    "sentiment": ["how was the battery of this phone", "نظر کاربران درباره باتری گوشی"],
    "names": ["which persons and places are named", "چه نام‌هایی در این جمله هست"],
    "reader": ["read this passage and answer where he was born", "متن را بخوان و بگو کجا"],
    "law": ["what does indemnify mean in a contract", "who owns the lease of a tenant"],
}
SENTENCE = "which persons and places are named: علی دایی در Berlin است"


@pytest.fixture(scope="module")
def folder(base_nf4, tmp_path_factory):
    parent = tmp_path_factory.mktemp("team")
    encoder = SharedBase.load(DEFAULT_ENCODER)
    for i, name in enumerate(("sentiment", "names", "reader")):
        kind = dict(KINDS[name])
        write_expert(
            parent / name,
            encoder.facts,
            seed=i,
            exemplars=EXEMPLARS[name],
            languages=("en", "fa"),
            **kind,
        )
    write_expert(parent / "law", base_nf4.facts, exemplars=EXEMPLARS["law"])
    return parent


@pytest.fixture(scope="module")
def one(folder):
    loaded = One4All.load(folder, embeddings=FakeEmbeddings(), max_tokens=4)
    yield loaded
    loaded.encoder.close()
    loaded.engine.close()


async def every_way(chat, question, **settings):
    return [
        chat.invoke(question, **settings),
        await chat.ainvoke(question, **settings),
        reduce(add, list(chat.stream(question, **settings))),
        reduce(add, [chunk async for chunk in chat.astream(question, **settings)]),
    ]


async def test_the_router_spans_both_bases(one):
    """A question for an expert that decides would be answered by one that writes."""
    for message in await every_way(one, SENTENCE):
        facts = message.response_metadata
        assert facts["expert"] == facts["route"]["best"] == "names"
        assert facts["kind"] == "tag"
        assert facts["base"] == DEFAULT_ENCODER
        for entity in facts["result"]["entities"]:
            assert SENTENCE[entity["start"] : entity["end"]] == entity["text"]
            assert entity["text"] in message.text
        assert message.usage_metadata["input_tokens"] > 5
        assert facts["identity"] == one.library["names"].identity
    said = one.invoke(EXEMPLARS["law"][0])
    assert said.response_metadata["expert"] == "law"
    assert "result" not in said.response_metadata
    assert said.usage_metadata["output_tokens"]


async def test_an_encoder_expert_is_forced_by_its_name(one):
    for message in await every_way(one, "The battery is great.", model="sentiment"):
        facts = message.response_metadata
        assert (facts["expert"], facts["model_name"]) == ("sentiment", "sentiment")
        assert facts["result"]["label"] in message.text
    with pytest.raises(InvalidInput, match="give the text and a question"):
        one.invoke("Where?", model="reader")


async def test_a_question_that_lacks_a_passage_goes_to_the_fallback(one):
    """Lost otherwise: a question is refused, because the router thinks of an expert that reads."""
    question = EXEMPLARS["reader"][0]
    assert one.router.invoke(question).best == "reader"
    answer = one.invoke(question)
    assert answer.response_metadata["expert"] == "base"
    assert answer.response_metadata["route"]["reason"] == one.route(question).reason == "incomplete"
    assert await one.aroute(question) == one.route(question)
    turn = {"messages": [HumanMessage(question)]}
    told = ExpertRouterMiddleware(one).before_agent(turn, None)["expert_route"]
    assert (told["best"], told["reason"]) == (None, "incomplete")
    assert "needs a second text" in one.route(question).explain()


def test_a_batch_of_both_kinds(one):
    questions = [SENTENCE, EXEMPLARS["law"][0], EXEMPLARS["sentiment"][0]] * 3
    found = [message.response_metadata["expert"] for message in one.batch(questions)]
    assert found == ["names", "law", "sentiment"] * 3


def test_modes_that_mix_leave_experts_that_decide_alone(one):
    """Adapters of two bases cannot be mixed."""
    for mode in ("blend", "all"):
        assert one.invoke(SENTENCE, mode=mode).response_metadata["expert"] == "names"
        facts = one.invoke(EXEMPLARS["law"][0], mode=mode).response_metadata
        assert facts["expert"] == "law"


def test_tools_take_what_their_kind_takes(one):
    tools = {tool.name: tool for tool in expert_tools(one)}
    assert set(tools["ask_reader"].args) == {"question", "context"}
    assert set(tools["ask_names"].args) == {"text"}
    assert set(tools["ask_law"].args) == {"question"}
    call = {"name": "ask_names", "args": {"text": SENTENCE}, "id": "1", "type": "tool_call"}
    assert tools["ask_names"].invoke(call).artifact["result"]["entities"] is not None
    whole = one.as_tool()
    call = {"name": whole.name, "args": {"question": SENTENCE}, "id": "1", "type": "tool_call"}
    assert whole.invoke(call).artifact["kind"] == "tag"


def test_without_an_encoder_its_experts_are_refused_in_one_sentence(folder, base_nf4):
    encoder = SharedBase.load(DEFAULT_ENCODER)
    library = Library(folder, [base_nf4.facts, encoder.facts])
    engine = Engine.of(base_nf4)
    with pytest.raises(ValueError, match="give encoder=EncoderEngine"):
        ChatExpert(engine=engine, library=library, model="names")
    assert Library(folder, base_nf4.facts).names == ("law",)
    assert "law" not in Library(folder, encoder.facts)
    chat = ChatExpert(
        engine=engine, encoder=EncoderEngine.of(encoder), library=library, model="names"
    )
    assert isinstance(chat.invoke([HumanMessage("Ali")]), AIMessage)


def test_two_encoder_bases_in_one_folder_are_refused(folder, tmp_path):
    encoder = SharedBase.load(DEFAULT_ENCODER)
    for name, base in (("a", DEFAULT_ENCODER), ("b", "other/encoder")):
        write_expert(tmp_path / name, encoder.facts, kind="extract", base=base)
    with pytest.raises(InvalidInput, match="several bases"):
        One4All.load(tmp_path)


def test_a_head_that_was_changed_is_refused(tmp_path):
    """Labels would be swapped and nobody would know."""
    encoder = SharedBase.load(DEFAULT_ENCODER)
    made = write_expert(tmp_path / "x", encoder.facts, kind="classify", labels=("a", "b"))
    content = (made / "head.safetensors").read_bytes()
    (made / "head.safetensors").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(UnfitExpert, match="its card says"):
        Library(tmp_path)
    (made / "head.safetensors").unlink()
    with pytest.raises(UnfitExpert, match="needs its head"):
        Library(tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "classify", "labels": ("a", "a")}, "stands there twice"),
        ({"kind": "classify", "labels": ()}, "there are none"),
        ({"kind": "tag", "labels": ("O", "PER")}, "not 'PER'"),
        ({"kind": "extract", "labels": ("a",)}, "has none"),
        ({"kind": "extract", "head": {"threshold": "high"}}, "threshold is 'high'"),
        ({"kind": "extract", "head": {"pooling": "max"}}, "neither 'mean' nor 'first'"),
        ({"kind": "extract", "head": {"max_tokens": 2}}, "max_tokens is 2"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(base_facts, tmp_path, given, words):
    with pytest.raises(UnfitExpert, match=words):
        write_expert(tmp_path / "x", base_facts, **given)


@pytest.fixture(scope="module")
def base_facts():
    return SharedBase.load(DEFAULT_ENCODER).facts


def test_a_head_of_another_shape_or_not_finite_is_refused(base_facts, tmp_path):
    from safetensors.torch import load, save

    from one4all_lc.folder import read_expert
    from one4all_lc.head import HeadFacts

    made = write_expert(tmp_path / "x", base_facts, kind="classify", labels=("a", "b"))
    card = json.loads((made / "expert.json").read_text())
    tensors = load((made / "head.safetensors").read_bytes())

    def refused(changed, words):
        import hashlib

        content = save(changed)
        (made / "head.safetensors").write_bytes(content)
        facts = HeadFacts.of(card["head"] | {"sha256": hashlib.sha256(content).hexdigest()})
        (made / "expert.json").write_text(json.dumps(card | {"head": facts.as_dict()}))
        with pytest.raises(UnfitExpert, match=words):
            read_expert(made, base_facts)

    refused(tensors | {"weight": tensors["weight"][:1].contiguous()}, r"weight \[1, 384\]")
    refused(tensors | {"weight": tensors["weight"] * torch.inf}, "NaN, infinity")
    refused(tensors | {"more": tensors["bias"].clone()}, "more")
    refused({"weight": tensors["weight"]}, r"bias \[2\]")


def test_ask_prints_what_was_found(run, folder):
    """Persian beside Latin letters would be drawn in the wrong order."""
    code, out, err = run("ask", SENTENCE, "--expert", "names", "--adapters", folder)
    assert code == 0, err
    for line in out.strip().splitlines():
        assert "[" in line
        if any("\u0600" <= c <= "\u06ff" for c in line):
            assert "\u2068" in line
    code, out, _ = run(
        *("ask", SENTENCE, "--expert", "names", "--adapters", folder, "--json"),
    )
    found = json.loads(out)
    assert code == 0
    assert found["kind"] == "tag"
    assert "\u2068" not in found["answer"]
    assert found["result"]["entities"]
    code, out, err = run("ask", "Where?", "--expert", "reader", "--adapters", folder)
    assert (code, out) == (1, "")
    assert "give the text and a question" in err


def test_check_and_list_know_every_kind(run, folder):
    code, out, _ = run("check", *(folder / name for name in ("law", "names", "reader")))
    assert code == 0
    assert out.count("is fit") == 3
    _, out, _ = run("experts", "--adapters", folder, "--json")
    kinds = {item["name"]: item["kind"] for item in json.loads(out)}
    assert kinds == {"law": "chat", "names": "tag", "reader": "extract", "sentiment": "classify"}


def test_bases_are_one_document(run):
    code, out, _ = run("bases", "--json")
    found = json.loads(out)
    assert code == 0
    assert {row["kind"] for row in found} == {"encoder", "decoder"}
    assert all(row["memory"] or row["id"] is None for row in found)


def test_a_router_needs_no_encoder(folder):
    router = SemanticRouter(library=Library(folder), embeddings=FakeEmbeddings())
    assert router.invoke(SENTENCE).best == "names"
