"""Mined exemplars and their review: what a user would lose if a test failed."""

import json

import numpy as np
import pytest

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Exemplar, read_exemplars, write_exemplars
from one4all_lc.library import Library
from one4all_lc.routing import mining
from one4all_lc.routing.exemplars import ExemplarStore
from one4all_lc.routing.review import Mining, mine_exemplars, review
from one4all_lc.routing.rows import Labelled
from one4all_lc.testing import FakeEmbeddings
from tests.test_exemplars import in_memory
from tests.test_routing import FRUIT, SPACE, make_expert


def clusters(sizes, spread=0.05, size=24, seed=0):
    """Unit vectors around orthogonal centres, and the number of each one's centre."""
    generator = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(size)[owners] + generator.normal(0, spread, (len(owners), size))
    return mining.around(vectors.astype("f4")), owners


def test_every_kind_of_question_is_mined():
    """The commonest kind of question would fill the file, and the others be forgotten."""
    unit, kinds = clusters([400, 30, 5, 3])
    chosen = mining.mine(unit, 4, duplicate=0.999)
    assert sorted(kinds[chosen]) == [0, 1, 2, 3]
    centre = unit[kinds == 0].mean(0)
    cosines = unit[kinds == 0] @ centre
    picked = unit[[index for index in chosen if kinds[index] == 0]] @ centre
    assert picked[0] >= np.quantile(cosines, 0.99)  # a medoid, not any member


def test_mining_is_the_same_every_time():
    """Two people would mine two different files from the same data."""
    unit, _ = clusters([60, 60, 60], spread=0.3)
    assert mining.mine(unit, 20, seed=5) == mining.mine(unit, 20, seed=5)
    assert mining.mine(unit, 20, seed=5) != mining.mine(unit, 20, seed=6)


@pytest.mark.parametrize("count", [1, 7, 30, 45, 1000])
def test_as_many_are_mined_as_there_can_be(count):
    """Fewer exemplars than asked for, or one twice."""
    unit, _ = clusters([20, 25], spread=0.3)
    chosen = mining.mine(unit, count, duplicate=2)
    assert len(set(chosen)) == len(chosen) == min(count, 45)


def test_near_duplicates_are_dropped():
    """Fifty exemplars would be one question in fifty wordings."""
    unit, _ = clusters([30], spread=0.3)
    again = np.concatenate([unit, unit, unit[:5]])
    assert mining.distinct(again, 0.99).tolist() == list(range(30))
    assert len(mining.distinct(again, 0.99, taken=unit[:10])) == 20
    chosen = mining.mine(again, 30, duplicate=0.99)
    assert len({tuple(row) for row in again[chosen]}) == 30


def test_each_language_gets_its_share():
    """A language that a tenth of the users write would have no exemplar."""
    unit, _ = clusters([50, 45, 5], spread=0.2)
    languages = ["en"] * 50 + ["fr"] * 45 + ["fa"] * 5
    chosen = mining.mine(unit, 10, languages=languages, duplicate=2)
    counts = {name: sum(languages[i] == name for i in chosen) for name in ("en", "fr", "fa")}
    assert counts == {"en": 5, "fr": 4, "fa": 1}
    assert len(mining.mine(unit, 2, languages=languages, duplicate=2)) == 2


def test_blocks_change_nothing(monkeypatch):
    """Large libraries would be reviewed otherwise than small ones."""
    unit, owners = clusters([20, 20, 20], spread=0.6)
    whole = mining.conflicts(unit, owners, 0.4), mining.nearest(unit[:50], unit[50:])
    assert whole[0]
    monkeypatch.setattr(mining, "BLOCK", 7)
    parts = mining.conflicts(unit, owners, 0.4), mining.nearest(unit[:50], unit[50:])
    assert [(p.first, p.second) for p in parts[0]] == [(p.first, p.second) for p in whole[0]]
    np.testing.assert_array_equal(parts[1][0], whole[1][0])


# Folders


@pytest.fixture
def library(tmp_path):
    shared = "How sweet is a moon cake?"
    make_expert(tmp_path, "fruit", [*FRUIT, shared, "How sour is a lemon ?"])
    make_expert(tmp_path, "space", [*SPACE, shared, *(f"Is star {name} far?" for name in "abcdef")])
    return Library(tmp_path)


def looked_through(library, rows=()):
    embeddings = FakeEmbeddings()
    known = ExemplarStore(embeddings, in_memory()).sync(library)
    return review(list(library), known, rows, embeddings)


def test_a_review_shows_conflicts_with_both_texts(library):
    """Two experts would fight for a question, and nobody would know which."""
    found = looked_through(library)
    first = found.conflicts[0]
    assert first.experts == ("fruit", "space")
    assert first.texts == ("How sweet is a moon cake?",) * 2
    assert first.cosine == pytest.approx(1, abs=1e-5)
    assert {"How sour is a lemon?", "How sour is a lemon ?"} == set(found.duplicates[0].texts)
    assert found.thin == (("fruit", 5),)
    json.dumps(found.as_dict())


def test_a_review_shows_what_no_exemplar_is_near_to(library):
    """Questions that users do ask would be refused, and nobody would know why."""
    rows = [
        Labelled("How far is Mars?", "space"),
        Labelled("Who composed that symphony", "space"),
        Labelled("Whatever", "oos"),
    ]
    found = looked_through(library, rows)
    assert [(gap.expert, gap.text) for gap in found.gaps] == [
        ("space", "Who composed that symphony")
    ]
    assert found.questions == 2
    with pytest.raises(InvalidInput, match="'law', which is no expert: the experts are fruit"):
        looked_through(library, [Labelled("a", "law")])


def test_a_language_without_exemplars_is_named(tmp_path):
    """An expert for Persian would refuse every Persian question."""
    folder = make_expert(tmp_path, "fruit", FRUIT)
    card = json.loads((folder / "expert.json").read_text())
    (folder / "expert.json").write_text(json.dumps(card | {"languages": ["en", "fa"]}))
    assert looked_through(Library(tmp_path)).languages == (("fruit", "fa"),)


def test_an_empty_library_has_nothing_to_mend():
    """`one4all exemplars --check` before the first expert would fail."""
    assert looked_through(Library()).exemplars == 0


def test_what_was_written_by_hand_stays(tmp_path):
    """An evening's work would be overwritten by what a program chose."""
    folder = tmp_path / "fruit"
    folder.mkdir()
    by_hand = [Exemplar("How sour is a lemon?"), Exemplar("Who sings that?", "en", "oos")]
    write_exemplars(folder, by_hand)
    rows = [Labelled(text, "fruit") for text in (*FRUIT, "Do figs have wasps inside?")]
    rows.append(Labelled("Is this a test row?", "fruit", "test"))
    mined, after = mine_exemplars(folder, rows, FakeEmbeddings(), Mining(3))
    assert len(mined) == 2
    assert read_exemplars(folder) == after == (*by_hand, *mined)
    assert not {"Is this a test row?", "How sour is a lemon?"} & {item.text for item in mined}
    again = mine_exemplars(folder, rows, FakeEmbeddings(), Mining(3))
    assert again == ((), after)
    replaced, after = mine_exemplars(folder, rows, FakeEmbeddings(), Mining(2, replace=True))
    assert (len(replaced), len(after)) == (2, 3)  # nobody's question stays


def test_mining_can_be_tried_without_writing(tmp_path):
    """A look at what would be mined would change the expert."""
    rows = [Labelled(text, "fruit") for text in FRUIT]
    mined, _ = mine_exemplars(tmp_path / "fruit", rows, FakeEmbeddings(), Mining(2), write=False)
    assert len(mined) == 2
    assert not (tmp_path / "fruit").exists()
    with pytest.raises(InvalidInput, match="no question of split 'train' for 'fruit'"):
        mine_exemplars(tmp_path / "fruit", [], FakeEmbeddings(), Mining(2))
