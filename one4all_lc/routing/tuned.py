"""A router with an embedder of its own: what `fit(finetune=True)` makes, keeps and scores by.

A question is embedded twice by one model, as it came and with the adapter: `[plain, tuned]`. Whose
question it is, both halves decide, for the adapter alone knows little beyond its exemplars. Whether
it is anybody's, the plain half: the adapter has seen the exemplars, so they lie closer to each
other than new questions ever will, and a threshold set on them would refuse those. For the same
reason the temperature comes from a rehearsal, in which a third of the exemplars was kept from the
adapter. How much the tuned half counts is chosen there as well; it may be nothing.
"""

import hashlib
import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from one4all_lc.base.threads import passing_threads
from one4all_lc.errors import InvalidInput
from one4all_lc.routing.calibration import temperature_of
from one4all_lc.routing.candidates import EXACT, Near
from one4all_lc.routing.embeddings import PROMPT, QuestionEmbeddings, load_embedder, prompt_of
from one4all_lc.routing.exemplars import ExemplarSet
from one4all_lc.routing.scoring import ClassScore, Scorer, Scores
from one4all_lc.routing.spaces import Array, unit
from one4all_lc.routing.tuning import TuningRecipe, train_adapter

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

    from one4all_lc.training.progress import Watcher

FILES = ("adapter_config.json", "adapter_model.safetensors")
TOLD = "tuning.json"
WEIGHTS = (0.0, 0.25, 0.5, 0.75)
UNTRIED = (0.5, 2.0)
"""Weight and temperature where exemplars are too few for a rehearsal."""
REHEARSED = 3
"""One exemplar in so many is kept from the adapter that is trained first."""


class TunedEmbeddings(Embeddings):
    """An embedder and its adapter; it loads at first use.

    Args:
        base: The model's id.
        adapter: The bytes of PEFT's files, by name.
        weight: What the tuned half counts, between 0 and 1.
        temperature: Of class scores.
    """

    def __init__(
        self, base: str, adapter: Mapping[str, bytes], weight: float, temperature: float
    ) -> None:
        self.base, self.adapter = base, dict(adapter)
        self.weight, self.temperature = weight, temperature
        weights = hashlib.sha256(self.adapter[FILES[1]]).hexdigest()
        self.model_name = f"{base}+{weights[:16]}"
        self._turn = threading.RLock()
        self._model: HuggingFaceEmbeddings | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, bytes], float, float]]:
        """Pickle without the loaded model."""
        return type(self), (self.base, self.adapter, self.weight, self.temperature)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return unit vectors of 2d numbers: as the model came, then with the adapter."""
        with self._turn, passing_threads():
            both = _both(self._loaded(), texts)
        vectors: list[list[float]] = _weighed(both, self.weight).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed one text exactly as `embed_documents` would."""
        return self.embed_documents([text])[0]

    def write(self, folder: Path) -> None:
        """Write the adapter as PEFT does, and what else there is to know."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.adapter.items():
            (folder / name).write_bytes(data)
        told = {"base": self.base, "weight": self.weight, "temperature": self.temperature}
        (folder / TOLD).write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what `write` wrote; None if there is nothing.

        Raises:
            InvalidInput: It cannot be read.
        """
        if not (folder / TOLD).is_file():
            return None
        try:
            told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
            adapter = {name: (folder / name).read_bytes() for name in FILES}
            return cls(told["base"], adapter, float(told["weight"]), float(told["temperature"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{folder} is no saved embedder ({error}): delete it and fit anew."
            raise InvalidInput(msg) from error

    def _loaded(self) -> "HuggingFaceEmbeddings":
        if self._model is None:
            model = load_embedder(self.base)
            client: Any = model._client
            with tempfile.TemporaryDirectory() as folder:
                for name, data in self.adapter.items():
                    Path(folder, name).write_bytes(data)
                client.load_adapter(folder)
            client.eval()
            self._model = model
        return self._model


@dataclass(frozen=True)
class TunedScorer:
    """Two scorers of the same exemplars; it scores as one of them does.

    Attributes:
        plain: On vectors of the model as it came: whether a question is anybody's.
        tuned: On both together: whose it is.
    """

    plain: Scorer
    tuned: Scorer

    @classmethod
    def fit(cls, known: ExemplarSet, retention: float, temperature: float) -> Self:
        """Fit both on exemplars whose vectors are (n, 2d)."""
        languages = [item.language for item in known.exemplars]
        plain, tuned = (
            Scorer.fit(vectors, known.experts, languages, background, retention, negatives)
            for vectors, background, negatives in (
                map(plain_half, (known.vectors, known.background, known.negatives)),
                (known.vectors, known.background, known.negatives),
            )
        )
        classes = replace(tuned.classes, temperature=temperature)
        return cls(plain, replace(tuned, classes=classes))

    def score(self, queries: Array, near: Near | None = None) -> Scores:
        """Score questions (q, 2d)."""
        whose = self.tuned.score(queries)
        anybodys = self.plain.score(plain_half(queries), near)
        return replace(anybodys, class_score=whose.class_score, probability=whose.probability)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names."""
        return self.plain.names

    @property
    def thresholds(self) -> Array:
        """(c,) the least in-scope scores."""
        return self.plain.thresholds

    @property
    def classes(self) -> ClassScore:
        """The class score of the plain half: what is chosen for it is chosen for both."""
        return self.plain.classes

    @property
    def owners(self) -> NDArray[np.intp]:
        """(n,) each exemplar's expert."""
        return self.plain.owners

    @property
    def vectors(self) -> Array:
        """(n, d) the plain half of the exemplars."""
        return self.plain.vectors


def plain_half(vectors: Array) -> Array:
    """Return what the model gives without its adapter, unit vectors (n, d) of (n, 2d)."""
    return unit(vectors[:, : vectors.shape[1] // 2]) if vectors.size else vectors


def _weighed(both: Array, weight: float) -> Array:
    """Return unit vectors (n, 2d) whose tuned half counts so much in their products."""
    plain, tuned = np.split(both, 2, axis=1)
    return np.concatenate([plain * (1 - weight) ** 0.5, tuned * weight**0.5], axis=1).astype("f4")


def tune(
    embeddings: Embeddings, known: ExemplarSet, watcher: "Watcher", recipe: TuningRecipe
) -> Embeddings:
    """Train an adapter on exemplars, once without a third of them and once with all.

    Returns:
        The embedder with its adapter; the one that was given if exemplars that are kept from the
        adapter fit no better with it.

    Raises:
        InvalidInput: The embedder's weights are not here, or there are too few or too many
            exemplars.
    """
    base = _base_of(embeddings)
    names = tuple(dict.fromkeys(known.experts))
    owners = np.array([names.index(name) for name in known.experts])
    if len(names) < 2 or np.bincount(owners).max() < 2 or len(owners) > EXACT:
        msg = (
            f"There are {len(owners)} exemplars of {len(names)} experts: finetune needs two of one "
            f"expert, another expert, and at most {EXACT} in all."
        )
        raise InvalidInput(msg)
    texts = [item.text for item in known.exemplars]
    weight, temperature = _rehearse(base, texts, owners, watcher, recipe)
    if not weight:
        return embeddings
    model = _trained(base, texts, owners.tolist(), watcher, recipe)
    with tempfile.TemporaryDirectory() as folder:
        model._client.transformers_model.save_pretrained(folder)
        adapter = {name: Path(folder, name).read_bytes() for name in FILES}
    return TunedEmbeddings(base, adapter, weight, temperature)


def _rehearse(
    base: str,
    texts: Sequence[str],
    owners: NDArray[np.intp],
    watcher: "Watcher",
    recipe: TuningRecipe,
) -> tuple[float, float]:
    """Return weight and temperature for exemplars that an adapter has not seen."""
    place = np.zeros(len(owners), int)
    for owner in np.unique(owners):
        place[owners == owner] = np.arange(int((owners == owner).sum()))
    kept = np.flatnonzero(place % REHEARSED == REHEARSED - 1)
    rest = np.setdiff1d(np.arange(len(owners)), kept)
    if not len(kept):
        return UNTRIED
    seen = [texts[index] for index in rest]
    model = _trained(base, seen, owners[rest].tolist(), watcher, recipe)
    both = _both(model, list(texts))
    found = {weight: _held_out(_weighed(both, weight), owners, rest, kept) for weight in WEIGHTS}
    best = min(found, key=lambda weight: found[weight][1])
    words = ", ".join(f"{weight} {loss:.3f}" for weight, (_, loss) in found.items())
    watcher.note(f"loss of {len(kept)} exemplars kept from the adapter, by its weight: {words}")
    return best, found[best][0]


def _held_out(
    vectors: Array, owners: NDArray[np.intp], rest: NDArray[np.intp], kept: NDArray[np.intp]
) -> tuple[float, float]:
    """Return the temperature for the kept exemplars when fitted on the rest, and their loss."""
    scorer = Scorer.fit(vectors[rest], [str(owner) for owner in owners[rest]])
    order = np.array([scorer.names.index(str(owner)) for owner in owners[kept]])
    return temperature_of(scorer.score(vectors[kept]).class_score, order)


def _trained(
    base: str,
    texts: Sequence[str],
    owners: Sequence[int],
    watcher: "Watcher",
    recipe: TuningRecipe,
) -> "HuggingFaceEmbeddings":
    model = load_embedder(base)
    asked = [prompt_of(base, PROMPT) + text for text in texts]
    train_adapter(model._client, asked, owners, recipe, watcher)
    model._client.eval()
    return model


def _both(model: "HuggingFaceEmbeddings", texts: list[str]) -> Array:
    """Embed (n, 2d) by a model with an adapter: as it came, then with the adapter."""
    client: Any = model._client
    tuned = model.embed_documents(texts)
    client.disable_adapters()
    try:
        plain = model.embed_documents(texts)
    finally:
        client.enable_adapters()
    return np.concatenate([np.array(plain, "f4"), np.array(tuned, "f4")], axis=1)


def _base_of(embeddings: Embeddings) -> str:
    if isinstance(embeddings, QuestionEmbeddings):
        return embeddings.model_name
    msg = (
        f"finetune trains an adapter for an embedder whose weights are here, got "
        f"{type(embeddings).__name__}: use QuestionEmbeddings(model_name)."
    )
    raise InvalidInput(msg)
