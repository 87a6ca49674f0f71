"""The exemplars' embeddings in Chroma: embedded once, kept, and found again by their text."""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import OOS, Exemplar, Expert
from one4all_lc.routing.background import EVERYDAY

PROBE = "Which question belongs to whom?"
_log = logging.getLogger(__name__)
CHUNK = 1000  # items per call: SQLite has a limit of variables


@dataclass(frozen=True)
class ExemplarSet:
    """The exemplars of the experts in use, with their embeddings.

    Attributes:
        exemplars: The n exemplars, expert by expert.
        experts: The n names of their experts.
        vectors: (n, d) embeddings as the embedder gave them.
        background: (m, d) embeddings of the everyday questions in `background.py`.
        negatives: (k, d) embeddings of questions that are nobody's.
    """

    exemplars: tuple[Exemplar, ...]
    experts: tuple[str, ...]
    vectors: NDArray[np.float32]
    background: NDArray[np.float32]
    negatives: NDArray[np.float32]


class ExemplarStore:
    """A Chroma collection of exemplars, one collection for each embedder.

    An item's id is the hash of its text, so that libraries share a store, a text is embedded once
    however many experts have it, and an exemplar taken out of an expert's file is just not asked
    for any more. Such items stay, some 2 KB each, since another library may ask for them; the
    folder can be deleted at any time and fills again.

    Args:
        embeddings: Any LangChain embedder.
        client: A Chroma client, for example an `HttpClient`; None keeps the items in `folder`.
        folder: Where to keep them; None takes `exemplars` in the cache folder. Processes that
            share a folder take turns; clients passed in see to that themselves.
    """

    def __init__(
        self, embeddings: Embeddings, client: Any = None, folder: str | Path | None = None
    ) -> None:
        self.embeddings = embeddings
        self._client = client
        self._folder = Path(folder) if folder is not None else None
        self._known: dict[str, NDArray[np.float32]] = {}
        self._fingerprint = ""
        self._syncing = threading.Lock()
        self._reader: Any = None

    @property
    def fingerprint(self) -> str:
        """What identifies the embedder, 32 hexadecimal digits."""
        self._fingerprint = self._fingerprint or fingerprint_of(self.embeddings)
        return self._fingerprint

    def sync(self, experts: Iterable[Expert], negatives: Iterable[Exemplar] = ()) -> ExemplarSet:
        """Return the experts' exemplars with embeddings; embed and store those that are new.

        An expert without exemplars stands there with its card's description as the only one.

        Args:
            experts: The experts.
            negatives: Questions that are nobody's, beside those that experts have labelled `oos`.

        Raises:
            InvalidInput: The folder cannot be written, the collection is not one of cosines, or
                the embedder gave something else than finite vectors of one length.
        """
        experts = tuple(experts)
        own = [(expert.name, item) for expert in experts for item in exemplars_of(expert)]
        others = [("", item) for item in (*negatives, *negatives_of(experts))]
        everyday = [("", Exemplar(text)) for text in EVERYDAY] if own else []
        with self._syncing:
            wanted = {digest(item.text): (name, item) for name, item in own + everyday + others}
            missing = {key: wanted[key] for key in wanted if key not in self._known}
            if missing:
                self._fill(missing)
        return ExemplarSet(
            tuple(item for _, item in own),
            tuple(name for name, _ in own),
            self._vectors(own),
            self._vectors(everyday),
            self._vectors(others),
        )

    def near(self, vectors: NDArray[np.float32], count: int) -> list[list[str]]:
        """Return for each vector (q, d) the ids of about the `count` nearest items, by the index.

        An index that cannot be asked names none.
        """
        with self._syncing:
            if self._client is not None:
                return _near(_collection(self._client, self.fingerprint), vectors, count)
            if self._reader is None:
                self._reader = self._open_reader()
            return _near(_collection(self._reader, self.fingerprint), vectors, count)

    def _open_reader(self) -> Any:
        """Open a client that stays open: its index is loaded once, and again after a change.

        It may miss what other processes have written since, until this one takes that over. Its
        path is written otherwise than the writer's, or Chroma would give both one index.
        """
        import chromadb
        from filelock import FileLock

        folder = self._folder or _default_folder()
        with FileLock(folder.with_name(folder.name + ".lock")):
            settings = chromadb.Settings(anonymized_telemetry=False)
            return chromadb.PersistentClient(f"{folder}/.", settings=settings)

    def _changed(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def forget(self, texts: Iterable[str]) -> None:
        """Delete texts and their embeddings from the collection.

        Another library that has such a text embeds it again when it starts.

        Raises:
            InvalidInput: The folder cannot be written.
        """
        gone = sorted({digest(text) for text in texts if text not in EVERYDAY})
        if not gone:
            return
        with self._syncing, self._opened(self.fingerprint) as collection:
            for keys in _chunks(gone):
                collection.delete(ids=keys)
            for key in gone:
                self._known.pop(key, None)
            self._changed()

    def _vectors(self, items: list[tuple[str, Exemplar]]) -> NDArray[np.float32]:
        rows = [self._known[digest(item.text)] for _, item in items]
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)

    def _fill(self, missing: dict[str, tuple[str, Exemplar]]) -> None:
        """Take the missing items' vectors from the collection, those it lacks from the embedder."""
        identity = self.fingerprint
        self._changed()
        with self._opened(identity) as collection:
            for keys in _chunks(list(missing)):
                items = collection.get(ids=keys, include=["embeddings"])
                vectors = np.asarray(items["embeddings"], np.float32)
                self._known |= dict(zip(items["ids"], vectors, strict=True))
        # Embedded with the folder closed: it may take long. Another process may do the same
        # meanwhile, and then writes the same items.
        new = [key for key in missing if key not in self._known]
        if not new:
            return
        vectors = embed(self.embeddings, [missing[key][1].text for key in new])
        found = dict(zip(new, vectors, strict=True))
        with self._opened(identity) as collection:
            for keys in _chunks(new):
                items = [missing[key] for key in keys]
                collection.upsert(
                    ids=keys,
                    embeddings=[found[key] for key in keys],
                    documents=[item.text for _, item in items],
                    metadatas=[
                        {"expert": name, "language": item.language, "digest": key}
                        for key, (name, item) in zip(keys, items, strict=True)
                    ],
                )
        self._known |= found

    @contextlib.contextmanager
    def _opened(self, identity: str) -> Iterator[Any]:
        """Open the embedder's collection; no other process uses the default folder meanwhile."""
        if self._client is not None:
            yield _collection(self._client, identity)
            return
        import chromadb
        from chromadb.errors import ChromaError
        from filelock import FileLock

        folder = self._folder or _default_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A file, not the folder: Chroma lists what lies in its folder.
            with FileLock(folder.with_name(folder.name + ".lock")):
                settings = chromadb.Settings(anonymized_telemetry=False)
                client = chromadb.PersistentClient(str(folder), settings=settings)
                try:
                    yield _collection(client, identity)
                finally:
                    # A client kept open has an index in memory that does not learn of other
                    # processes' writes: it fails at the first item that one of them wrote.
                    client.close()
        except (OSError, ChromaError) as error:
            msg = (
                f"{folder} cannot keep the exemplars ({error}): make it writable or set "
                "ONE4ALL_CACHE to a folder that is; if it is damaged, delete it, it fills again."
            )
            raise InvalidInput(msg) from error


def fingerprint_of(embeddings: Embeddings) -> str:
    """Identify an embedder by class, model, dimension and what it makes of one text.

    The name alone would not do: prompts and pooling change vectors and keep the name. A few
    rounded components suffice, and are the same on every device but for very few embedders.
    """
    vector = embed(embeddings, [PROBE])[0]
    facts = [*named(embeddings), str(len(vector))]
    facts += [f"{value:.0f}" for value in vector[:16] * 100]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def named(embeddings: Embeddings) -> tuple[str, str]:
    """Return an embedder's class and, as far as it tells, its model."""
    model = getattr(embeddings, "model_name", getattr(embeddings, "model", ""))
    return type(embeddings).__name__, str(model)


def collection_name(fingerprint: str) -> str:
    """Name the collection of the embedder with that fingerprint."""
    return f"one4all-{fingerprint}"


def embed(embeddings: Embeddings, texts: list[str]) -> NDArray[np.float32]:
    """Embed n texts, (n, d).

    All go through `embed_documents`, the question as well: exemplars are questions, and embedders
    that treat documents and queries differently must treat both sides of a comparison alike.

    Raises:
        InvalidInput: The result is not n finite vectors of one length.
    """
    return checked_vectors(embeddings, embeddings.embed_documents(texts), len(texts))


def checked_vectors(embeddings: Embeddings, rows: Any, count: int) -> NDArray[np.float32]:
    """Return an embedder's result as an array (count, d).

    Raises:
        InvalidInput: It is not `count` finite vectors of one length.
    """
    try:
        vectors = np.asarray(rows, np.float32)
    except ValueError:
        vectors = np.zeros(0, np.float32)
    if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
        msg = (
            f"{type(embeddings).__name__} gave no {count} finite vectors of one length for "
            f"{count} texts: use an embedder that does."
        )
        raise InvalidInput(msg)
    return vectors


def _collection(client: Any, identity: str) -> Any:
    # get_or_create leaves an existing collection's space and metadata as they are: look at them.
    collection = client.get_or_create_collection(
        collection_name(identity),
        configuration={"hnsw": {"space": "cosine"}},
        metadata={"embedder": identity},
        embedding_function=None,  # the default one would fetch a model
    )
    space = ((collection.configuration or {}).get("hnsw") or {}).get("space")
    if space != "cosine":
        msg = (
            f"The Chroma collection {collection.name!r} has space {space!r} but exemplars need "
            "'cosine', which is fixed at creation: delete the collection or use another client."
        )
        raise InvalidInput(msg)
    return collection


def _near(collection: Any, vectors: NDArray[np.float32], count: int) -> list[list[str]]:
    from chromadb.errors import ChromaError

    try:
        found = collection.query(query_embeddings=vectors, n_results=count, include=[])
    except ChromaError as error:
        _log.warning("The index of exemplars cannot be asked, all are compared: %s", error)
        return [[] for _ in vectors]
    return [list(ids) for ids in found["ids"]]


def exemplars_of(expert: Expert) -> tuple[Exemplar, ...]:
    """Return the expert's exemplars, each once; without any, its description as the only one."""
    described = Exemplar(expert.card.description, next(iter(expert.card.languages), "en"))
    own = tuple(item for item in expert.exemplars if item.label != OOS)
    unique = {item.text: item for item in own or (described,)}
    return tuple(unique.values())


def negatives_of(experts: Iterable[Expert]) -> tuple[Exemplar, ...]:
    """Return the experts' exemplars that are nobody's question, each once."""
    unique = {
        item.text: item for expert in experts for item in expert.exemplars if item.label == OOS
    }
    return tuple(unique.values())


def digest(text: str) -> str:
    """Return an item's id: the hash of its text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _chunks(keys: list[str]) -> list[list[str]]:
    return [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]


def _default_folder() -> Path:
    from one4all_lc.base.embedded import cache_folder

    return cache_folder() / "exemplars"
