"""Conversations, several experts, saved fits: every test says what a user would lose."""

import json
from pathlib import Path

import chromadb
import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, HumanMessage

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import OOS, Exemplar, write_exemplars
from one4all_lc.library import Library
from one4all_lc.routing.background import EVERYDAY
from one4all_lc.routing.choosing import sentences
from one4all_lc.routing.keeping import FILE
from one4all_lc.routing.router import SemanticRouter
from tests.test_routing import FRUIT, QUESTIONS, SPACE, fake, make_expert

HERE = Path(__file__).parent
DIALOGUES = [
    json.loads(line) for line in (HERE / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
]
PHONE, ILL = "Which phone has the best zoom?", "What are the symptoms of pneumonia?"


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Library:
    """Take the shipped exemplars."""
    root = tmp_path_factory.mktemp("shipped")
    for name in ("mobile", "medical", "sql"):
        file = HERE.parent / "adapters" / name / "exemplars.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        make_expert(root, name, [(row["text"], row["language"]) for row in rows])
    return Library(root)


@pytest.fixture
def two(tmp_path) -> Library:
    """Build a library of two small experts."""
    make_expert(tmp_path / "experts", "fruit", FRUIT)
    make_expert(tmp_path / "experts", "space", SPACE)
    return Library(tmp_path / "experts")


def conversation(row, expert: str | None = None):
    """Return a dialogue's messages up to the second question."""
    answer = AIMessage(row["answer"], response_metadata={"expert": expert} if expert else {})
    return [HumanMessage(row["first"]), answer, HumanMessage(row["second"])]


def test_follow_up_questions_reach_the_expert_of_the_conversation(experts):
    """Lost otherwise: `And how is it treated?` is answered by nobody."""
    assert len(DIALOGUES) == 60
    auto, alone = SemanticRouter(library=experts), SemanticRouter(library=experts, history="none")
    routes = auto.batch([conversation(row) for row in DIALOGUES])
    wrong = [
        f"{row['second']} -> {route.best} by {route.history} instead of {row['second_expert']}"
        for row, route in zip(DIALOGUES, routes, strict=True)
        if route.best != row["second_expert"]
    ]
    assert len(wrong) <= 6, "\n".join(wrong)
    assert {route.history for route in routes} >= {"message", "last_turn"}
    assert all(
        route.question == row["second"] for row, route in zip(DIALOGUES, routes, strict=True)
    )
    firsts = [[HumanMessage(row["first"])] for row in DIALOGUES]
    right = [
        sum(
            route.best == row["first_expert"]
            for row, route in zip(DIALOGUES, router.batch(firsts), strict=True)
        )
        for router in (auto, alone)
    ]
    assert right[0] >= right[1]


def test_dialogues_and_test_questions_are_no_exemplars_and_no_negatives(experts):
    """Lost otherwise: the tests of the router prove nothing."""
    known = {item.text for expert in experts for item in expert.exemplars} | set(EVERYDAY)
    assert not known & {row[key] for row in DIALOGUES for key in ("first", "second")}
    assert not known & {row["text"] for row in QUESTIONS}


async def test_history_is_read_as_told(experts):
    """Lost otherwise: an application that must not read old messages cannot say so."""
    asked = conversation({"first": ILL, "answer": "Cough and fever.", "second": "Why?"})
    none = SemanticRouter(library=experts, history="none")
    last = SemanticRouter(library=experts, history="last_turn")
    auto = SemanticRouter(library=experts, history="auto")
    assert none.invoke(asked).abstained
    assert none.invoke(asked).history == "message"
    assert (last.invoke(asked).best, last.invoke(asked).history) == ("medical", "last_turn")
    assert ILL in last.invoke(asked).routed
    route = await auto.ainvoke(asked)
    assert (route.best, route.question) == ("medical", "Why?")
    assert auto.embed_and_route(asked)[1].best == "medical"
    assert auto.invoke([HumanMessage(ILL), AIMessage("..."), HumanMessage(PHONE)]).best == "mobile"
    with pytest.raises(InvalidInput, match="'auto'"):
        SemanticRouter(library=experts, history="all")
    with pytest.raises(InvalidInput, match="decay"):
        SemanticRouter(library=experts, decay=2)


def test_a_batch_is_embedded_once_and_what_more_is_read_once(two):
    """Lost otherwise: every follow-up question costs a call of a remote embedder."""
    embeddings = fake()
    router = SemanticRouter(
        library=two,
        embeddings=embeddings,
        client=chromadb.EphemeralClient(),
        negatives=["Who is that?"],
    )
    router.refresh()
    embeddings.calls = 0
    asked = [HumanMessage("Good morning!"), AIMessage("Hello."), HumanMessage("Who is that?")]
    routes = router.batch([*[asked] * 5, FRUIT[0]])
    assert routes[-1].best == "fruit"
    abstained = router.invoke("Who is that?").abstained
    assert abstained
    assert embeddings.calls == 2 + 1
    assert embeddings.texts.count("Good morning!") == 1


def test_compound_question_goes_to_several_experts(experts):
    """Lost otherwise: the second half of a question stays unanswered."""
    asked = f"{PHONE} {ILL}"
    route = SemanticRouter(library=experts, split=True).invoke(asked)
    assert set(route.chosen) == {"mobile", "medical"}
    assert [part.expert for part in route.parts] == ["mobile", "medical"]
    assert len(SemanticRouter(library=experts).invoke(asked).chosen) <= 1
    assert sentences(PHONE) == ()


@pytest.mark.parametrize("several", ["margin", "independent"])
def test_several_experts_are_chosen_where_they_are_near(experts, several):
    """Lost otherwise: a question on the border of two domains gets half an answer."""
    asked = "Write a SQL query for the phones with the best battery according to reviewers."
    router = SemanticRouter(library=experts, several=several, within=1, at_least=0)
    assert router.invoke(asked).chosen[0] == router.invoke(asked).best
    assert len(SemanticRouter(library=experts).invoke(asked).chosen) == 1
    strict = SemanticRouter(library=experts, several=several, within=0, at_least=1)
    assert len(strict.invoke(asked).chosen) == 1
    with pytest.raises(InvalidInput, match="independent"):
        SemanticRouter(library=experts, several="all")


def test_ambiguous_question_is_refused_if_asked(experts):
    """Lost otherwise: a coin decides between two experts and nobody is told."""
    asked = "What does the table say about this phone?"
    route = SemanticRouter(library=experts, min_margin=1, target_retention=0.999).invoke(PHONE)
    assert (route.abstained, route.reason, route.chosen) == (True, "ambiguous", ())
    assert SemanticRouter(library=experts).invoke(PHONE).reason == "matched"
    assert SemanticRouter(library=experts, min_margin=1).invoke(asked).abstained


def test_negatives_are_refused(experts, tmp_path):
    """Lost otherwise: what the user has labelled as nobody's is answered all the same."""
    asked = ["Do you sell phone covers?", "Where can I sell my old camera?", "Repair my phone."]
    plain = SemanticRouter(library=experts)
    told = SemanticRouter(library=experts, negatives=asked)
    assert sum(r.abstained for r in told.batch(asked)) > sum(
        r.abstained for r in plain.batch(asked)
    )
    assert told.fingerprint != plain.fingerprint
    own = make_expert(tmp_path, "fruit", FRUIT)
    write_exemplars(own, [*map(Exemplar, FRUIT), Exemplar("Buy fruit.", label=OOS)])
    library = Library(tmp_path)
    router = SemanticRouter(library=library, embeddings=fake(), client=chromadb.EphemeralClient())
    assert all(item.text != "Buy fruit." for item in router.invoke("Buy fruit.").nearest)


def test_fit_takes_another_retention(experts):
    """Lost otherwise: a stricter router needs another object and a restart."""
    router = SemanticRouter(library=experts)
    loose = router.invoke(PHONE).threshold
    assert router.fit(target_retention=0.6).invoke(PHONE).threshold > loose
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        router.fit(target_retention=1.5)


async def test_a_saved_fit_gives_the_same_routes(two, tmp_path):
    """Lost otherwise: a server fits anew at every start, or routes otherwise than was measured."""
    client = chromadb.EphemeralClient()
    router = SemanticRouter(library=two, embeddings=fake(), client=client)
    await router.afit(target_retention=0.8)
    router.save(tmp_path / "fit")
    again = SemanticRouter(library=two, embeddings=fake(), client=client, target_retention=0.8)
    assert again.load(tmp_path / "fit", refit=False) is None
    for text in FRUIT + SPACE + ["Anything?"]:
        one, other = router.invoke(text), again.invoke(text)
        assert one.best == other.best
        assert one.in_scope == pytest.approx(other.in_scope, abs=1e-4)


def test_a_fit_for_something_else_is_refused_or_made_anew(two, tmp_path):
    """Lost otherwise: thresholds of another embedder decide, in silence."""
    client = chromadb.EphemeralClient()
    router = SemanticRouter(library=two, embeddings=fake(), client=client)
    router.save(tmp_path)
    other = SemanticRouter(library=two, embeddings=fake(24), client=client)
    with pytest.raises(InvalidInput, match="embedder"):
        other.load(tmp_path, refit=False)
    assert "embedder" in other.load(tmp_path)
    assert other.invoke(FRUIT[0]).best == "fruit"
    stricter = SemanticRouter(library=two, embeddings=fake(), client=client, target_retention=0.5)
    assert "target_retention" in stricter.load(tmp_path)
    two.remove("space")
    with pytest.raises(InvalidInput, match="other exemplars"):
        router.load(tmp_path, refit=False)
    with pytest.raises(InvalidInput, match="holds no"):
        router.load(tmp_path / "nowhere")
    (tmp_path / FILE).write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match="no saved router"):
        router.load(tmp_path)


def test_pickles_in_a_saved_fit_are_not_read(two, tmp_path):
    """Lost otherwise: whoever can write the file runs code in the server."""
    np.savez(tmp_path / FILE, told=np.array([{"a": 1}], object))
    router = SemanticRouter(library=two, embeddings=fake(), client=chromadb.EphemeralClient())
    with pytest.raises(InvalidInput, match="no saved router"):
        router.load(tmp_path)


def test_few_changes_among_many_exemplars_keep_the_settings(tmp_path):
    """Lost otherwise: an exemplar added at run time stops the router for seconds."""
    many = [f"Question {number} about fruit?" for number in range(600)]
    make_expert(tmp_path, "fruit", many)
    make_expert(tmp_path, "space", [text.replace("fruit", "stars") for text in many])
    library = Library(tmp_path)
    router = SemanticRouter(
        library=library,
        embeddings=DeterministicFakeEmbedding(size=16),
        client=chromadb.EphemeralClient(),
    )
    router.refresh()
    before = router._state
    write_exemplars(library["fruit"].folder, [Exemplar(text) for text in many[1:]])
    library.replace(library["fruit"].folder)
    router.refresh()
    assert router._state.scorer.classes.settings is before.scorer.classes.settings
    assert len(router._state.scorer.vectors) == 1199
    write_exemplars(library["fruit"].folder, [Exemplar(text) for text in many[300:]])
    library.replace(library["fruit"].folder)
    router.refresh()
    assert router._state.chosen_for == 900
