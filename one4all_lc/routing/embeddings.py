"""The default embedders: multilingual-e5-small, loaded at first use and shared by the process."""

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from langchain_core.embeddings import Embeddings

from one4all_lc.base.threads import passing_threads

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

MODEL = "intfloat/multilingual-e5-small"
# E5 was trained with "query: " and "passage: ". Exemplars are questions as well, so both sides of
# the comparison are queries. Source: https://huggingface.co/intfloat/multilingual-e5-small
PROMPT = "query: "
PASSAGE_PROMPT = "passage: "


class QuestionEmbeddings(Embeddings):
    """`HuggingFaceEmbeddings` that compares questions with questions.

    It loads at first use, so that building a router costs nothing, and embeds one batch at a time:
    a fast tokenizer refuses to be used by two threads at once, and a CPU gains nothing from it.

    Args:
        model_name: A hub id or path that `one4all_lc.base.embedded.resolve` finds.
    """

    def __init__(self, model_name: str = MODEL) -> None:
        self.model_name = model_name
        self._turn = threading.RLock()
        self._model: HuggingFaceEmbeddings | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Pickle as the model's name: it is loaded again at first use."""
        return type(self), (self.model_name,)

    def load(self) -> "HuggingFaceEmbeddings":
        """Load the model unless it is loaded.

        Raises:
            ModelNotFound: No place holds the model.
        """
        with self._turn:
            if self._model is None:
                self._model = load_embedder(self.model_name)
            return self._model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts as vectors of length 1."""
        with self._turn, passing_threads():
            return self.load().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed one text as a vector of length 1, exactly as `embed_documents` would."""
        return self.embed_documents([text])[0]

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        """Embed texts that questions are to find, such as documents, as vectors of length 1."""
        with self._turn, passing_threads():
            model = self.load()
            settings = {**model.encode_kwargs, "prompt": prompt_of(self.model_name, PASSAGE_PROMPT)}
            # A shallow copy: it shares the weights.
            return model.model_copy(update={"encode_kwargs": settings}).embed_documents(texts)


class PassageEmbeddings(Embeddings):
    """Embeds documents so that questions of `QuestionEmbeddings` find them; for vector stores.

    Args:
        questions: The embedder of the questions, whose weights are shared; None takes the default
            one, as a router does.

    Example:
        store = InMemoryVectorStore.from_texts(["The battery lasts a day."], PassageEmbeddings())
    """

    def __init__(self, questions: QuestionEmbeddings | None = None) -> None:
        self.questions = questions or default_embeddings()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents as vectors of length 1."""
        return self.questions.embed_passages(texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a question as the router does."""
        return self.questions.embed_query(text)


@cache
def default_embeddings() -> QuestionEmbeddings:
    """Return the process's one default embedder."""
    return QuestionEmbeddings()


def prompt_of(model_name: str, prompt: str) -> str:
    """Return the prompt for models of the E5 family; others were not trained with it."""
    return prompt if "e5" in Path(model_name).name.lower() else ""


def load_embedder(model_name: str) -> "HuggingFaceEmbeddings":
    """Load a model of its own, shared with nobody.

    Raises:
        ModelNotFound: No place holds the model.
    """
    import torch
    from langchain_huggingface import HuggingFaceEmbeddings

    from one4all_lc.base.embedded import resolve
    from one4all_lc.base.quiet import quiet

    folder, prompt = resolve(model_name), prompt_of(model_name, PROMPT)
    with quiet():
        return HuggingFaceEmbeddings(
            model_name=folder,
            model_kwargs={
                "device": "cuda" if torch.cuda.is_available() else "cpu",
                "local_files_only": True,
                # The checkpoint holds half precision, in which a CPU is many times slower.
                "model_kwargs": {"dtype": torch.float32},
            },
            encode_kwargs={"normalize_embeddings": True, "prompt": prompt},
            query_encode_kwargs={"normalize_embeddings": True, "prompt": prompt},
        )
