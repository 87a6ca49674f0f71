"""Exemplars that change while a router is in use: what a user would lose if a test failed."""

import json
import pickle
import socket
import subprocess
import sys
import threading

import chromadb
import numpy as np
import pytest

from one4all_lc import SemanticRouter
from one4all_lc.errors import InvalidInput, UnknownExpert
from one4all_lc.folder import EXEMPLARS_FILE, Exemplar, read_exemplars, write_exemplars
from one4all_lc.library import Library
from one4all_lc.routing.exemplars import ExemplarStore, collection_name, fingerprint_of
from one4all_lc.testing import FakeEmbeddings, fake_library
from tests.conftest import ROOT
from tests.test_routing import FRUIT, SPACE, Counting, make_expert

RHUBARB = "Is rhubarb a fruit?"


def in_memory():
    return chromadb.EphemeralClient()


@pytest.fixture
def folder(tmp_path):
    """Write two small experts."""
    make_expert(tmp_path / "experts", "fruit", FRUIT)
    make_expert(tmp_path / "experts", "space", SPACE)
    return tmp_path / "experts"


def routed(folder, client=None, notice_after=1.0):
    embeddings = Counting(FakeEmbeddings())
    library = Library(folder, notice_after=notice_after)
    router = SemanticRouter(library=library, embeddings=embeddings, client=client or in_memory())
    return router, embeddings


def texts_in(folder, name):
    return [item.text for item in read_exemplars(folder / name)]


async def test_an_added_exemplar_counts_at_once_and_only_it_is_embedded(folder):
    """A restart, or minutes of embedding, for every question that an expert should know."""
    router, embeddings = routed(folder)
    before = router.invoke(RHUBARB)
    embeddings.texts.clear()
    added = router.add_exemplars("fruit", [RHUBARB])
    assert added == (Exemplar(RHUBARB),)
    assert embeddings.texts == [RHUBARB]
    route = router.invoke(RHUBARB)
    assert (route.nearest[0].text, route.best) == (RHUBARB, "fruit")
    assert route.fingerprint != before.fingerprint
    assert texts_in(folder, "fruit") == [*FRUIT, RHUBARB]
    assert await router.aadd_exemplars("fruit", [RHUBARB]) == ()


async def test_a_removed_exemplar_is_gone_from_file_and_store(folder):
    """A question that had to be deleted would go on deciding, or stay in the store."""
    client = in_memory()
    router, embeddings = routed(folder, client)
    await router.aadd_exemplars("fruit", ["A secret lemon"], language="fr")
    assert read_exemplars(folder / "fruit")[-1] == Exemplar("A secret lemon", "fr")
    collection = client.get_collection(
        collection_name(fingerprint_of(embeddings)), embedding_function=None
    )
    assert "A secret lemon" in collection.get()["documents"]
    gone = await router.aremove_exemplars("fruit", ["A secret lemon"])
    assert gone == (Exemplar("A secret lemon", "fr"),)
    assert "A secret lemon" not in collection.get()["documents"]
    assert texts_in(folder, "fruit") == FRUIT
    assert router.invoke("A secret lemon").nearest[0].text != "A secret lemon"


def test_what_two_experts_share_stays_while_one_has_it(folder):
    """Removing an expert's exemplar would cost another expert its own."""
    client = in_memory()
    router, embeddings = routed(folder, client)
    router.add_exemplars("space", [FRUIT[0]])
    router.remove_exemplars("fruit", [FRUIT[0]])
    embeddings.texts.clear()
    ExemplarStore(embeddings, client).sync(router.library)
    assert FRUIT[0] not in embeddings.texts
    assert router.invoke(FRUIT[0]).nearest[0].expert == "space"


def test_the_last_exemplar_may_go(folder):
    """An expert could not be emptied, or would take everything."""
    router, _ = routed(folder)
    router.remove_exemplars("fruit", FRUIT)
    assert texts_in(folder, "fruit") == []
    assert router.invoke("An expert.").nearest[0].text == "An expert."  # the card's description


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda r: r.add_exemplars("fruit", [" "]), InvalidInput, "question as text"),
        (lambda r: r.add_exemplars("fruit", [Exemplar("a", "en", "x")]), InvalidInput, "label"),
        (lambda r: r.add_exemplars("tax", ["a"]), UnknownExpert, "the experts are fruit"),
        (lambda r: r.remove_exemplars("fruit", ["nothing"]), InvalidInput, "no exemplar 'nothing'"),
    ],
)
def test_what_cannot_be_done_changes_nothing(folder, change, error, words):
    """Half a change would be routed by, or a typing error would be taken for done."""
    router, _ = routed(folder)
    with pytest.raises(error, match=words):
        change(router)
    assert texts_in(folder, "fruit") == FRUIT


def test_an_expert_without_a_folder_keeps_them_in_memory():
    """Tests on experts without files could not add exemplars."""
    router = SemanticRouter(
        library=fake_library("sql"), embeddings=FakeEmbeddings(), client=in_memory()
    )
    router.add_exemplars("sql", ["Count the rows"])
    assert router.invoke("Count the rows").nearest[0].text == "Count the rows"


PROGRAM = """
import sys
from one4all_lc import Library, SemanticRouter
from one4all_lc.testing import FakeEmbeddings
import chromadb
router = SemanticRouter(library=Library(sys.argv[1], notice_after=0), embeddings=FakeEmbeddings())
for line in sys.stdin:
    kind, _, text = line.rstrip("\\n").partition(" ")
    if kind == "add":
        router.add_exemplars("fruit", [text])
    print(router.invoke(text).nearest[0].text, flush=True)
"""


def test_another_process_notices(folder, tmp_path, monkeypatch):
    """Every worker of a server would need a restart, or they would answer differently."""
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )

    def ask(line):
        other.stdin.write(line + "\n")
        other.stdin.flush()
        return other.stdout.readline().strip()

    try:
        embedded = []
        real = FakeEmbeddings.embed_documents
        monkeypatch.setattr(
            FakeEmbeddings, "embed_documents", lambda self, t: embedded.extend(t) or real(self, t)
        )
        library = Library(folder, notice_after=0)
        here = SemanticRouter(library=library, embeddings=FakeEmbeddings())
        assert ask(f"ask {RHUBARB}") != RHUBARB
        here.add_exemplars("fruit", [RHUBARB])
        assert ask(f"ask {RHUBARB}") == RHUBARB
        assert ask("add Are quinces sour") == "Are quinces sour"
        embedded.clear()
        assert here.invoke("Are quinces sour").nearest[0].text == "Are quinces sour"
        assert embedded == ["Are quinces sour"]  # the question: the store had the exemplar
        here.remove_exemplars("fruit", [RHUBARB])
        assert ask(f"ask {RHUBARB}") != RHUBARB
    finally:
        other.stdin.close()
        other.wait(60)


def test_an_edited_file_is_noticed_and_a_broken_one_changes_nothing(folder, caplog):
    """Questions would be refused while somebody edits a file."""
    router, _ = routed(folder, notice_after=0)
    router.refresh()
    write_exemplars(folder / "fruit", [Exemplar(RHUBARB)])
    assert router.invoke(RHUBARB).nearest[0].text == RHUBARB
    (folder / "fruit" / EXEMPLARS_FILE).write_text('{"text": "half')
    assert router.invoke(RHUBARB).nearest[0].text == RHUBARB
    assert "line 1 of exemplars.jsonl" in caplog.text
    (folder / "fruit" / EXEMPLARS_FILE).unlink()
    assert router.invoke(RHUBARB).nearest[0].text == RHUBARB


def test_files_are_looked_at_no_more_often_than_told(folder, monkeypatch):
    """A thousand experts would cost a thousand looks at the disk for every question."""
    import one4all_lc.library as module

    looks = []
    real = module.stamp_of
    library = Library(folder, notice_after=3600)
    monkeypatch.setattr(module, "stamp_of", lambda path: looks.append(path) or real(path))
    for _ in range(5):
        library.notice()
    assert len(looks) == 2
    library.notice(at_once=True)
    assert len(looks) == 4


def test_a_pickled_library_notices_what_changed_on_its_way(folder):
    """A worker would start with exemplars of yesterday and keep them."""
    library = Library(folder, notice_after=0)
    packed = pickle.dumps(library)
    library.add_exemplars("fruit", [Exemplar(RHUBARB)])
    arrived = pickle.loads(packed)
    arrived.notice()
    assert arrived["fruit"].exemplars == library["fruit"].exemplars


def test_writers_undo_nothing_of_each_other(folder):
    """Of two exemplars added at once one would be lost."""
    libraries = [Library(folder) for _ in range(4)]  # as four processes have them

    def add(number):
        for step in range(5):
            libraries[number].add_exemplars("fruit", [Exemplar(f"Pear {number} {step}?")])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts_in(folder, "fruit")) == 3 + 20


def test_a_killed_writer_loses_nothing(folder):
    """An expert's exemplars would be gone after a crash."""
    code = (
        "import os, sys; import one4all_lc.writing as w; from one4all_lc import Library;"
        "from one4all_lc.folder import Exemplar;"
        "w.os.fsync = lambda _: os.kill(os.getpid(), 9);"
        "Library(sys.argv[1]).add_exemplars('fruit', [Exemplar('lost')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert texts_in(folder, "fruit") == FRUIT
    library = Library(folder)  # the folder is fit, and its lock was freed
    library.add_exemplars("fruit", [Exemplar(RHUBARB)])
    assert texts_in(folder, "fruit") == [*FRUIT, RHUBARB]


def test_a_folder_that_cannot_be_written_is_named(folder, monkeypatch):
    """A traceback of the operating system's."""
    router, _ = routed(folder)
    (folder / "fruit" / f".{EXEMPLARS_FILE}.lock").mkdir()
    with pytest.raises(InvalidInput, match="cannot be changed"):
        router.add_exemplars("fruit", [RHUBARB])
    assert router.library["fruit"].exemplars == read_exemplars(folder / "fruit")


# Chroma


@pytest.fixture
def server(tmp_path):
    """Run Chroma's own server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("w")
    arguments = ["run", "--path", str(tmp_path / "server"), "--host", "127.0.0.1"]
    program = "import sys; from chromadb.cli.cli import app; sys.exit(app())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--port", str(port)], stdout=log, stderr=log
    )
    deadline = threading.Event()
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        except OSError:
            assert process.poll() is None, (tmp_path / "log").read_text()
            deadline.wait(0.1)
    yield lambda: chromadb.HttpClient(
        "127.0.0.1", port, settings=chromadb.Settings(anonymized_telemetry=False)
    )
    process.terminate()
    process.wait(30)
    log.close()


def test_a_chroma_server_keeps_the_exemplars(folder, server):
    """Machines that share a server would each embed everything."""
    first, _ = routed(folder, server())
    first.add_exemplars("fruit", [RHUBARB])
    assert first.invoke(RHUBARB).best == "fruit"
    second, embeddings = routed(folder, server())
    assert second.invoke(RHUBARB).nearest[0].text == RHUBARB
    assert not {*FRUIT, *SPACE} & set(embeddings.texts)
    collection = server().get_collection(
        collection_name(fingerprint_of(embeddings)), embedding_function=None
    )
    assert collection.configuration["hnsw"]["space"] == "cosine"
    assert {*FRUIT, *SPACE, RHUBARB} <= set(collection.get()["documents"])


def test_stored_vectors_are_read_back_as_they_were(folder):
    """Scores would differ between the first start and the second."""
    client = in_memory()
    fresh = ExemplarStore(FakeEmbeddings(), client).sync(Library(folder))
    stored = ExemplarStore(FakeEmbeddings(), client).sync(Library(folder))
    np.testing.assert_allclose(fresh.vectors, stored.vectors, atol=1e-6)
    assert json.dumps([item.text for item in fresh.exemplars]) == json.dumps(
        [item.text for item in stored.exemplars]
    )
