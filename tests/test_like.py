"""An expert made again: on another base by its card, or anew while the others stay as they are."""

import json

import pytest

from one4all_lc import ChatExpert, Library
from one4all_lc.base.loading import SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import read_expert, sha256_of
from one4all_lc.training.like import Like, train_like
from one4all_lc.training.qlora import train_expert
from one4all_lc.training.recipe import About, Recipe
from tests.bases import GEMMA3, write_base
from tests.shouting import ABOUT, train, write_rows

CUT = {"max_tokens": 12}


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    """A second architecture: sliding windows, another norm, tied embeddings."""
    return write_base(tmp_path_factory.mktemp("gemma-3-tiny"), "gemma3_text", **GEMMA3)


@pytest.fixture(scope="module")
def shout(small_base, tmp_path_factory):
    """An expert of the small llama, and its rows."""
    parent = tmp_path_factory.mktemp("adapters")
    data = write_rows(parent / "rows.jsonl")
    recipe = Recipe(rank=3, steps=30, batch_tokens=240, learning_rate=1e-2, seed=5)
    about = About(**(vars(ABOUT) | {"title": "Capitals", "generation": CUT}))
    return train_expert(parent / "shout", [data], about=about, recipe=recipe, base=small_base)


def test_a_card_makes_the_expert_again_on_another_architecture(shout, gemma3, monkeypatch):
    """Lost: every expert, with the next base."""
    monkeypatch.chdir(shout.folder.parent)  # its card names the data without a folder
    like = Like.read(shout.folder)
    again = train_like(like, gemma3)
    assert again.folder == like.place_for(gemma3)
    assert again.folder.parent.name.startswith(f"{shout.folder.parent.name}-gemma-3-tiny")
    card, old = again.card, shout.card
    for fact in ("title", "description", "system_prompt", "generation", "languages"):
        assert getattr(card, fact) == getattr(old, fact)
    for fact in ("recipe", "data", "license", "fields"):
        assert card.training[fact] == old.training[fact]
    assert card.training["like"]["same_data"] is True
    assert card.training["like"]["weights_sha256"] == old.weights_sha256
    assert again.exemplars == shout.exemplars
    assert card.fingerprint.architecture == "Gemma3ForCausalLM"

    base = SharedBase.load(gemma3, quantization="nf4")
    engine = Engine.of(base)
    library = Library.of([read_expert(again.folder, base.facts)])
    expert = ChatExpert(engine=engine, library=library, model="shout")
    bare = ChatExpert(engine=engine, library=library, model="base")
    answers = [model.invoke("Say apple 1").content for model in (expert, bare)]
    assert answers[0] != answers[1]
    perplexity = card.metrics["perplexity"]
    assert perplexity["expert"] < 0.9 * perplexity["base"]
    with pytest.raises(UnfitExpert, match="architecture"):
        read_expert(shout.folder, base.facts)


def test_data_that_is_gone_or_has_changed_is_missed(shout, gemma3, tmp_path, monkeypatch):
    like = Like.read(shout.folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"rows\.jsonl, the data of 'shout', is not here"):
        like.data()
    write_rows(tmp_path / "rows.jsonl", ("train", "dev"))
    with pytest.raises(InvalidInput, match="have changed since"):
        like.data()
    assert like.same_data([tmp_path / "rows.jsonl"]) is False


def test_an_expert_is_not_replaced_by_its_like(shout, gemma3):
    with pytest.raises(UnfitExpert, match="name another folder"):
        train_like(Like.read(shout.folder), gemma3, folder=shout.folder)


def test_cards_of_version_0_1_have_recipes_too():
    training = {"rank": 8, "alpha": 16, "learning_rate": 0.001, "steps": 300, "batch_rows": 16}
    recipe = Recipe.from_training(training | {"final_loss": 0.1, "rows": 10_000})
    assert (recipe.rank, recipe.steps, recipe.batch_tokens) == (8, 300, 1360)


def test_the_card_names_all_that_a_training_takes(shout, small_base):
    """Lost: the answer to what an expert was made of, a year later."""
    training = shout.card.training
    (file,) = training["data"]
    assert file == {
        "file": "rows.jsonl",
        "sha256": sha256_of(shout.folder.parent / "rows.jsonl"),
    }
    recipe = training["recipe"]
    assert (recipe["rank"], recipe["alpha"], recipe["seed"]) == (3, 6, 5)
    assert Recipe.from_training(training) == Recipe(**recipe | {"targets": ("all-linear",)})
    assert all(value is not None for value in recipe.values())
    assert set(training["versions"]) >= {"one4all_lc", "torch", "transformers", "peft"}
    assert training["peak_memory_bytes"] > 50 << 20
    assert training["tokens_per_second"] > 0
    assert (shout.folder / training["curve"]).read_bytes().startswith(b"\x89PNG")
    assert shout.card.base == small_base
    json.dumps(shout.card.as_dict())


def test_a_second_version_leaves_every_other_expert_as_it_was(
    tmp_path, data, small_base, make_expert
):
    """Lost: the promise that one expert is mended without touching the rest, to the last bit."""
    base = SharedBase.load(small_base, quantization="nf4")
    first = train(tmp_path / "experts" / "shout", data, small_base)
    others = [make_expert(name, base.facts, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    library = Library(base=base.facts)
    for folder in (first.folder, *others):
        library.add(folder)
    engine = Engine.of(base)
    before = answers(engine, library)
    files = {path: path.read_bytes() for folder in others for path in folder.iterdir()}

    second = train(tmp_path / "experts" / "shout", data, small_base, steps=20)
    library.replace(second.folder)
    after = answers(engine, library)
    assert (first.card.version, second.card.version) == (1, 2)
    assert after.pop("shout") != before.pop("shout"), "the new version must matter"
    assert after == before
    assert files == {path: path.read_bytes() for path in files}


def answers(engine, library):
    """Each expert's and the base's answers: tokens, and how likely each was, to the last bit."""
    from one4all_lc.engine.request import Request
    from one4all_lc.sampling import Sampling

    asked = [(5, 6, 7, 8), (100, 200, 300)]
    handles = {
        name: [engine.submit(Request(ids, mixture, Sampling(max_tokens=12))) for ids in asked]
        for name, mixture in {
            "base": (),
            **{expert.name: ((expert, 1.0),) for expert in library},
        }.items()
    }
    return {name: [handle.result().tokens for handle in asked] for name, asked in handles.items()}
