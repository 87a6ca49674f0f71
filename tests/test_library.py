"""The library: experts come and go while others are being asked."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from one4all_lc import library as library_module
from one4all_lc.card import CARD_FILE
from one4all_lc.errors import InvalidInput, UnfitExpert, UnknownExpert
from one4all_lc.folder import CONFIG_FILE, Expert
from one4all_lc.library import Library, default_adapters, expert_folders
from tests.test_folder import BASE, build, config, fingerprint


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    root = tmp_path / "adapters"
    for name in ("sql", "law", "medical"):
        build(root, name)
    return root


def state(library: Library) -> list[Expert]:
    return list(library)


def test_a_folder_of_experts_is_taken_whole(adapters: Path):
    """Lost: experts, in an order that changes from machine to machine."""
    library = Library(adapters, BASE)
    assert library.names == ("law", "medical", "sql")
    assert [expert.name for expert in library] == ["law", "medical", "sql"]
    assert len(library) == 3
    assert "law" in library
    assert "base" not in library
    assert library["law"].folder == adapters / "law"


def test_only_visible_folders_are_experts(adapters: Path):
    """Lost: a start, to a file or to a training in progress that lies beside the experts."""
    (adapters / "README.md").touch()
    for name in (".sql.training", "__pycache__"):
        (adapters / name).mkdir()
    assert [path.name for path in expert_folders(adapters)] == ["law", "medical", "sql"]


def test_an_empty_library_grows(adapters: Path):
    """Lost: experts that are added to a running application."""
    library = Library(base=BASE)
    assert library.names == ()
    assert library.add(adapters / "sql") is library["sql"]
    assert library.add(str(adapters / "law")) is library["law"]
    assert library.names == ("sql", "law")


def test_replace_keeps_the_order_and_takes_the_new(adapters: Path):
    """Lost: the new training of an expert, or everybody's place in what the user sees."""
    library = Library(adapters, BASE)
    old = library["medical"]
    config(lora_alpha=16)(adapters / "medical")
    new = library.replace(adapters / "medical")
    assert library["medical"] is new
    assert new.identity != old.identity
    assert library.names == ("law", "medical", "sql")


def test_remove_leaves_the_folder(adapters: Path):
    """Lost: an expert's files, when it was only to rest."""
    library = Library(adapters, BASE)
    removed = library.remove("law")
    assert removed.name == "law"
    assert library.names == ("medical", "sql")
    assert (adapters / "law" / CARD_FILE).is_file()
    library.add(adapters / "law")
    assert library.names == ("medical", "sql", "law")


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda library, _: library["lore"], id="get"),
        pytest.param(lambda library, _: library.remove("lore"), id="remove"),
        pytest.param(lambda library, lore: library.replace(lore), id="replace"),
    ],
)
def test_an_unknown_expert_lists_the_known(adapters: Path, tmp_path: Path, use):
    """Lost: the way back from a typing error."""
    library, lore = Library(adapters, BASE), build(tmp_path, "lore")
    before = state(library)
    with pytest.raises(UnknownExpert, match=r"'lore'.*law, medical, sql, base"):
        use(library, lore)
    assert state(library) == before


def broken(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")


@pytest.mark.parametrize("method", ["add", "replace"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(broken, id="broken"),
        pytest.param(fingerprint(tokenizer="other"), id="of another base"),
        pytest.param(config(use_dora=True), id="DoRA"),
    ],
)
def test_an_unfit_folder_changes_nothing(adapters: Path, tmp_path: Path, method: str, change):
    """Lost: the expert that works, to one that does not."""
    library = Library(adapters, BASE)
    folder = build(tmp_path, "law")
    before = state(library)
    change(folder)
    with pytest.raises(UnfitExpert, match=str(folder)):
        getattr(library, method)(folder)
    assert state(library) == before


def test_a_name_is_given_once(adapters: Path, tmp_path: Path):
    """Lost: an expert, overwritten by another of the same name."""
    library, folder = Library(adapters, BASE), build(tmp_path, "law", title="Other")
    before = state(library)
    with pytest.raises(UnfitExpert, match="'law' is in use already"):
        library.add(folder)
    assert state(library) == before


@pytest.mark.parametrize("missing", ["gone", "adapters/law/expert.json"])
def test_no_such_folder(adapters: Path, missing: str):
    """Lost: a sentence that says which path was wrong."""
    with pytest.raises(InvalidInput, match=missing):
        Library(adapters.parent / missing)


def at_once(workers: int, work) -> list[object]:
    """Call `work(0)`, `work(1)`, ... from as many threads, all released together."""
    gate = threading.Barrier(workers)

    def run(number: int) -> object:
        gate.wait()
        try:
            return work(number)
        except (UnfitExpert, UnknownExpert) as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(workers)))


class Slow(Library):
    """Gives every other thread time to come between a look at the library and its change."""

    def _swap(self, experts: Iterable[Expert]) -> None:
        seen = list(experts)
        threading.Event().wait(0.01)
        super()._swap(seen)


def test_one_of_many_adds_wins(adapters: Path):
    """Lost: the rule that a name is given once, under load."""
    library = Slow(base=BASE)
    results = at_once(8, lambda _: library.add(adapters / "law"))
    assert sum(isinstance(result, Expert) for result in results) == 1
    assert library.names == ("law",)


def test_no_change_is_lost(tmp_path: Path):
    """Lost: experts, when two are added at the same moment."""
    folders = [build(tmp_path, f"expert-{number}") for number in range(8)]
    library = Slow(base=BASE)
    for _ in range(2):
        at_once(8, lambda number: library.add(folders[number]))
        assert sorted(library.names) == [folder.name for folder in folders]
        at_once(8, lambda number: library.remove(folders[number].name))
        assert library.names == ()


def test_a_replacement_revives_nobody(adapters: Path):
    """Lost: the removal of an expert, when another is replaced at the same moment."""
    library = Slow(adapters, BASE)
    old = library["medical"]
    changes = [
        lambda: library.replace(adapters / "medical"),
        lambda: library.remove("law"),
        lambda: library.remove("sql"),
    ]
    at_once(3, lambda number: changes[number]())
    assert library.names == ("medical",)
    assert library["medical"] is not old


def test_a_reader_sees_before_or_after(adapters: Path):
    """Lost: a running request, to a library that is half changed while it is replaced."""
    library = Library(adapters, BASE)
    done = threading.Event()
    seen: list[tuple[str, ...]] = []

    def read() -> None:
        while True:
            last = done.is_set()  # reads at least once
            names = [expert.name for expert in library]
            seen.append(tuple(names))
            assert library["medical"].name == "medical"
            if last:
                return

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for _ in range(40):
                library.replace(adapters / "medical")
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert set(seen) == {("law", "medical", "sql")}


def test_default_adapters_are_those_of_the_working_directory(tmp_path: Path, monkeypatch):
    """Lost: a user's own experts, hidden by the shipped ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library_module, "__file__", str(tmp_path / "site" / "pkg" / "library.py"))
    with pytest.raises(InvalidInput, match=r"no experts at adapters or .*site"):
        default_adapters()
    (tmp_path / "site" / "adapters").mkdir(parents=True)
    assert default_adapters() == tmp_path / "site" / "adapters"
    (tmp_path / "adapters").mkdir()
    assert default_adapters().resolve() == tmp_path / "adapters"


def test_a_python_package_named_adapters_is_not_experts(tmp_path: Path, monkeypatch):
    """Lost: every start beside the PyPI package `adapters`, whose folders are no experts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library_module, "__file__", str(tmp_path / "site" / "pkg" / "library.py"))
    package = tmp_path / "site" / "adapters"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    with pytest.raises(InvalidInput):
        default_adapters()
