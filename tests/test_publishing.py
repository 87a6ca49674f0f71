"""What is served is never lost to what should replace it, and the way back stays open."""

import logging
import math
import random
import shutil
import threading
from pathlib import Path

import pytest

from one4all_lc import publishing
from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import EXEMPLARS_FILE, read_expert
from one4all_lc.library import Library
from one4all_lc.publishing import publish, recover
from one4all_lc.versions import rollback, versions_of, weights_kept
from tests.killing import run_until
from tests.test_folder import BASE, Change, build, card, config, snapshot, with_value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(tmp_path / "adapters")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return build(tmp_path / "made", title="New")


@pytest.fixture(params=["in one step", "in two steps"])
def swapped(request, monkeypatch):
    """Both ways of changing places: Linux', and that of systems that cannot exchange folders."""
    if request.param == "in two steps":
        monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)


def titles(folder: Path) -> dict[int, str]:
    return {item.number: item.card.title for item in versions_of(folder)}


def left_over(folder: Path) -> list[str]:
    store = publishing.store_of(folder)
    names = [path.name for path in store.iterdir()] if store.is_dir() else []
    return [name for name in names if name != ".lock" and not name.isdecimal()]


def test_a_new_expert(made: Path, tmp_path: Path):
    """Lost: the first version of an expert."""
    place = tmp_path / "adapters" / "law"
    expert = publish(made, place)
    assert snapshot(place) == snapshot(made)
    assert (expert.folder, expert.card.version) == (place, 1)
    assert not left_over(place)


def test_what_lay_at_the_place_of_a_new_expert_is_carried_over(made: Path, tmp_path: Path):
    """Lost: exemplars that somebody wrote before there was an expert."""
    place = tmp_path / "adapters" / "law"
    place.mkdir(parents=True)
    (place / EXEMPLARS_FILE).write_text('{"text": "Mine?"}\n')
    (made / EXEMPLARS_FILE).unlink()
    assert [item.text for item in publish(made, place).exemplars] == ["Mine?"]


def test_replaces_and_keeps(made: Path, folder: Path, swapped):
    """Lost: the version that was served till now, and the source of the one that is."""
    old, new = snapshot(folder), snapshot(made)
    assert publish(made, folder).card.version == 2
    assert snapshot(made) == new
    assert titles(folder) == {2: "New", 1: "Law"}
    (kept,) = [item for item in versions_of(folder) if not item.in_place]
    assert snapshot(kept.folder) == old
    assert read_expert(kept.folder, BASE).card.title == "Law"
    assert not left_over(folder)


def test_back_and_forth(made: Path, folder: Path, swapped):
    """Lost: the expert that worked, once a better one turned out not to be one."""
    old = snapshot(folder)
    publish(made, folder)
    new = snapshot(folder)
    assert rollback(folder).card.version == 1
    assert snapshot(folder) == old
    assert titles(folder) == {2: "New", 1: "Law"}
    assert rollback(folder, 2).card.title == "New"
    assert snapshot(folder) == new


def test_versions_count_up_whatever_was_rolled_back(made: Path, folder: Path):
    """Lost: a kept version, to another of the same number."""
    publish(made, folder)
    rollback(folder)
    card(title="Third", version=2)(made)
    assert publish(made, folder).card.version == 3
    assert titles(folder) == {3: "Third", 2: "New", 1: "Law"}


def test_old_versions_are_bounded(made: Path, folder: Path):
    """Lost: the disk, to versions that nobody will go back to."""
    for number in range(2, 7):
        card(title=f"No {number}")(made)
        publish(made, folder, keep=2)
    assert titles(folder) == {6: "No 6", 5: "No 5", 4: "No 4"}
    publish(made, folder, keep=0)
    assert list(titles(folder)) == [7]
    with pytest.raises(InvalidInput, match=r"no older version to go back to: .* none is kept"):
        rollback(folder)
    with pytest.raises(InvalidInput, match="-1 old versions"):
        publish(made, folder, keep=-1)


@pytest.mark.parametrize("version", [0, 2, 7])
def test_only_what_is_kept_comes_back(made: Path, folder: Path, version: int):
    """Lost: what is in place, to a version that is not there."""
    publish(made, folder)
    before = snapshot(folder)
    with pytest.raises(InvalidInput, match=f"no version {version} to go back to: .*kept are 1"):
        rollback(folder, version)
    assert snapshot(folder) == before


def test_an_expert_without_history_stays(folder: Path):
    """Lost: a sentence in the place of a traceback."""
    with pytest.raises(InvalidInput, match="none is kept"):
        rollback(folder)
    assert not publishing.store_of(folder).exists()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(config(use_dora=True), id="DoRA"),
        pytest.param(with_value(math.nan, "f4"), id="NaN"),
        pytest.param(card(weights_sha256="0" * 64), id="hash"),
        pytest.param(lambda made: shutil.rmtree(made), id="gone"),
    ],
)
def test_refused_leaves_the_old(made: Path, folder: Path, change: Change):
    """Lost: the expert that was in use, to a training that went wrong."""
    old = snapshot(folder)
    change(made)
    with pytest.raises(UnfitExpert):
        publish(made, folder)
    assert snapshot(folder) == old


def test_another_name_is_refused(made: Path, tmp_path: Path):
    """Lost: an expert, to one that was meant for another place."""
    target = build(tmp_path / "adapters", "lore")
    old = snapshot(target)
    with pytest.raises(UnfitExpert, match="publish it as 'law', not as 'lore'"):
        publish(made, target)
    assert snapshot(target) == old


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["copytree", "_exchange"])
def test_a_failure_leaves_the_old(made: Path, folder: Path, monkeypatch, failure, step: str):
    """Lost: the expert in use, to a full disk or to a user who changed their mind."""
    old, where = snapshot(folder), shutil if step == "copytree" else publishing

    def failing(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(where, step, failing)
    with pytest.raises((InvalidInput, KeyboardInterrupt)):
        publish(made, folder)
    assert snapshot(folder) == old
    assert not left_over(folder)


def test_a_cut_between_two_steps_is_mended(folder: Path, made: Path):
    """Lost: the expert, where folders are exchanged by two renames, to a power cut between them."""
    old, store = snapshot(folder), publishing.store_of(folder)
    (store / ".next").mkdir(parents=True)
    folder.rename(store / ".aside")
    assert Library(folder.parent, BASE).names == ("law",)
    assert snapshot(folder) == old
    folder.rename(store / ".aside")
    recover(folder)
    assert publish(made, folder).card.version == 2


def test_many_at_once_take_turns(folder: Path, made: Path):
    """Lost: versions, when two people publish at the same moment."""
    threads = [threading.Thread(target=publish, args=(made, folder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(titles(folder)) == [5, 4, 3, 2, 1]


PUBLISH = "publish(sys.argv[2], sys.argv[3])"
BACK = "rollback(sys.argv[3])"


@pytest.mark.parametrize(
    ("prepare", "work"),
    [
        pytest.param("from one4all_lc.publishing import publish", PUBLISH, id="publish"),
        pytest.param("from one4all_lc.versions import rollback", BACK, id="rollback"),
    ],
)
def test_killed_at_random_moments_the_old_or_the_new_is_whole(tmp_path: Path, prepare, work):
    """Lost: the expert in use and its history, to `kill -9` while a version changes."""

    def begin(name: str) -> tuple[Path, Path, Path]:
        folder = build(tmp_path / name / "adapters")
        made = build(tmp_path / name / "made", title="New")
        publish(made, folder)
        return folder, made, tmp_path / name

    folder, made, _ = begin("whole")
    one, two = (snapshot(item.folder) for item in reversed(versions_of(folder)))
    moments = run_until(0, prepare, work, (made, folder))
    assert moments > 40, "the moments to choose from would not cover the steps"
    last = snapshot(folder)
    for moment in random.SystemRandom().sample(range(1, moments + 1), 5):
        folder, made, _ = begin(f"killed-at-{moment}")
        assert run_until(moment, prepare, work, (made, folder)) is None
        found = snapshot(folder)
        assert found in (two, last), f"killed at {moment} of {moments}"
        assert read_expert(folder, BASE).name == "law"
        kept = [snapshot(item.folder) for item in versions_of(folder) if not item.in_place]
        assert one in (*kept, found), f"killed at {moment} of {moments}"
        newest = publish(made, folder).card.version  # and everything goes on
        assert max(titles(folder)) == newest == 3 + (found == last and work == PUBLISH)
        assert not left_over(folder)


class TestLibrary:
    """Lost, throughout: the new version, until somebody starts the application anew."""

    def test_notices_what_happens_on_disk(self, made: Path, folder: Path):
        library = Library(folder.parent, BASE)
        assert library.refresh() == ()
        publish(made, folder)
        old = library["law"]
        assert library.refresh() == ("law",)
        assert (old.card.title, library["law"].card.title) == ("Law", "New")
        rollback(folder)
        assert library.refresh() == ("law",)
        assert library["law"].identity == old.identity
        build(folder.parent, "lore")
        shutil.rmtree(folder)
        assert set(library.refresh()) == {"law", "lore"}
        assert library.names == ("lore",)
        assert library.refresh() == ()

    def test_keeps_the_old_where_the_new_is_unfit(self, folder: Path, caplog):
        library = Library(folder.parent, BASE)
        config(use_dora=True)(folder)
        card(title="Broken")(folder)
        with caplog.at_level(logging.WARNING):
            assert library.refresh() == ()
        assert "use_dora" in caplog.text
        assert library["law"].card.title == "Law"

    def test_watches(self, made: Path, folder: Path):
        library = Library(folder.parent, BASE)
        noticed = threading.Event()
        swap = library._swap
        library._swap = lambda experts: (swap(experts), noticed.set())
        with library.watching(0.01):
            publish(made, folder)
            assert noticed.wait(60)
        assert library["law"].card.title == "New"

    def test_a_question_is_enough(self, made: Path, folder: Path):
        """A router calls `notice` before every question."""
        library = Library(folder.parent, BASE, notice_after=0)
        build(folder.parent, "lore")
        publish(made, folder)
        library.notice()
        assert library["law"].card.title == "New"
        assert library.names == ("law",), "who comes and goes is a matter of `refresh`"
        taken = library["law"]
        library.notice()
        assert library["law"] is taken
        copy = Library.of(library, BASE)
        rollback(folder)
        copy.notice(at_once=True)
        assert copy["law"].card.title == "Law"

    def test_an_unfit_newcomer_is_tried_once(self, folder: Path, caplog):
        library = Library(folder.parent, BASE)
        config(use_dora=True)(build(folder.parent, "lore"))
        with caplog.at_level(logging.WARNING):
            assert library.refresh() == library.refresh() == ()
        assert caplog.text.count("not taken into use") == 1
        card(title="Mended")(folder.parent / "lore")
        config(use_dora=False)(folder.parent / "lore")
        assert library.refresh() == ("lore",)

    def test_of_experts_has_no_folder_to_look_at(self, folder: Path):
        with pytest.raises(InvalidInput, match="not made from a folder"):
            Library.of([read_expert(folder)]).refresh()


def test_who_has_not_noticed_is_served_the_version_it_knows(folder: Path, made: Path):
    """Lost: the answers of a running application, from the moment somebody else publishes."""
    from one4all_lc.base.residency import _load

    known = read_expert(folder, BASE)
    with_value(0.25, "f4")(made)
    publish(made, folder)
    assert weights_kept(known) is not None
    torch = pytest.importorskip("torch")
    adapter = _load(known, torch.device("cpu"), torch.float32)
    assert adapter.identity == known.identity
    publish(made, folder, keep=0)
    assert weights_kept(known) is None
    with pytest.raises(UnfitExpert, match="changed after expert 'law' was read"):
        _load(known, torch.device("cpu"), torch.float32)


def test_a_card_says_its_version_where_it_lies(folder: Path, made: Path):
    """Lost: the trust in `version`, which traces and logs show."""
    publish(made, folder)
    for item in versions_of(folder):
        assert ExpertCard.read(item.folder).version == item.number
