"""An engine without weights, and experts without files: for tests of what is built on this package.

    from one4all_lc import ChatExpert
    from one4all_lc.testing import FakeEngine, fake_expert, fake_library

    engine = FakeEngine({"sql": "SELECT 1"})
    sql = ChatExpert(engine=engine, library=fake_library("sql"), model="sql")
    assert sql.invoke("How many?").content == "SELECT 1"

Everything but the logits is the true engine's: requests queue, share a batch, stream token by
token, stop, time out and are cancelled; an answer that must have a form gets it. Tokens are bytes.
"""

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from langchain_core.embeddings import Embeddings
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from one4all_lc.base.residency import Readiness, Residency
from one4all_lc.card import BASE, BaseFacts, BaseFingerprint, ExpertCard
from one4all_lc.engine.decoding import Decoder, RowInput
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Request
from one4all_lc.folder import Exemplar, Expert
from one4all_lc.library import Library

if TYPE_CHECKING:
    from one4all_lc.base.loading import SharedBase

BASE_ID = "one4all/fake"

_END = "<|im_end|>"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Asked:
    """What a fake engine is asked.

    Attributes:
        prompt: The whole prompt, the chat template applied.
        expert: The expert's name; several are joined by `+`; `base` for none.
    """

    prompt: str
    expert: str

    @property
    def question(self) -> str:
        """The last user turn of the prompt."""
        return self.prompt.rpartition("<|im_start|>user\n")[2].partition(_END)[0]


Answers = Mapping[str, str] | Callable[[Asked], str]
"""By expert, or by what is asked. An exception that is raised becomes the request's."""


class FakeEngine(Engine):
    """An engine that answers what it is told to.

    Args:
        answers: What is answered; an expert without an answer says its name and the question.
        **settings: As `Engine` takes them.

    Example:
        FakeEngine(lambda asked: asked.question.upper())
    """

    def __init__(self, answers: Answers | None = None, **settings: Any) -> None:
        self._answers: Answers = answers or {}
        self._experts: dict[tuple[tuple[str, float], ...], str] = {(): BASE}
        self._asked: set[tuple[int, ...]] = set()
        base = SimpleNamespace(
            facts=_FACTS,
            tokenizer=_tokenizer(),
            quantization="none",
            device=torch.device("cpu"),
            dtype=torch.float32,
            context_length=1 << 14,
            memory_bytes=0,
        )
        base.end_tokens = frozenset({base.tokenizer.eos_token_id})
        super().__init__(cast("SharedBase", _Hashable(base)), **{"prefix_bytes": 0} | settings)

    def submit(self, request: Request, *, patience: float | None = None) -> Handle:
        """Queue a request; see `Engine.submit`."""
        name = "+".join(expert.name for expert, _ in request.experts) or BASE
        self._experts[request.mixture] = name
        self._asked.add(tuple(request.prompt))
        return super().submit(request, patience=patience)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what is answered."""
        return type(self), (self._answers,)

    def answer(self, prompt: str, expert: str) -> str:
        """Return what is answered to a prompt."""
        asked = Asked(prompt, expert)
        if callable(self._answers):
            return self._answers(asked)
        return self._answers.get(expert, f"{expert}: {asked.question}")

    def _make_residency(self, budget: int) -> Residency:
        return cast("Residency", _EveryAdapter())

    def _make_decoder(self, packed_bytes: int) -> Decoder:
        return cast("Decoder", _Script(self.base.tokenizer, self._answer_of, self._asked))

    def _answer_of(self, prompt: str, mixture: tuple[tuple[str, float], ...]) -> str:
        return self.answer(prompt, self._experts[mixture])


def fake_expert(
    name: str,
    description: str | None = None,
    exemplars: Sequence[str] = (),
    **card: Any,
) -> Expert:
    """Return an expert that has no folder.

    Args:
        name: Its name.
        description: What it is for.
        exemplars: Questions of its domain.
        **card: Other fields of its card.
    """
    made = ExpertCard(
        name=name,
        title=name,
        description=description or f"Questions about {name}.",
        base=BASE_ID,
        fingerprint=_FACTS.fingerprint,
        weights_sha256=_sha256(name),
        **card,
    )
    texts = tuple(Exemplar(text) for text in exemplars or [f"a question about {name}"])
    return Expert(Path(name), made, texts, {}, _sha256(f"{name}, version {made.version}"))


def fake_library(*experts: str | Expert) -> Library:
    """Return a library of experts that have no folders, by name or as `fake_expert` makes them."""
    return Library.of(fake_expert(item) if isinstance(item, str) else item for item in experts)


class FakeEmbeddings(Embeddings):
    """Embeds a text by the words in it: texts that share words are near each other."""

    def __init__(self, size: int = 256) -> None:
        self.size = size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embed a text."""
        vector = [1e-3] * self.size
        for word in "".join(c if c.isalnum() else " " for c in text.lower()).split():
            vector[int(_sha256(word), 16) % self.size] += 1.0
        norm = sum(x * x for x in vector) ** 0.5
        return [x / norm for x in vector]


class _Script:
    """Logits that spell the answers."""

    kernels = "none: a fake"
    packs = False
    packed_bytes = 0
    recorded_bytes = 0

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        answer: Callable[..., str],
        whole: Container[tuple[int, ...]],
    ) -> None:
        self._tokenizer, self._answer, self._whole = tokenizer, answer, whole
        self._prompts: dict[int, list[int]] = {}
        self._scripts: dict[int, list[int]] = {}
        self.cache = SimpleNamespace(reserve=lambda *_: None)

    def forward(self, rows: Sequence[RowInput], adapters: object) -> Tensor:
        logits = torch.zeros(len(rows), len(self._tokenizer))
        # Whatever the form of an answer, it ends as soon as it may.
        logits[:, self._tokenizer.convert_tokens_to_ids(['"', "}", "]"])] = 1.0
        logits[:, self._tokenizer.eos_token_id] = 2.0
        for i, row in enumerate(rows):
            if not row.decodes:
                self._read(row)
            said = row.start + len(row.tokens) - len(self._prompts[row.slot])
            script = self._scripts.get(row.slot, [])
            if said < len(script):
                logits[i, script[said]] = 9.0
        return logits

    def _read(self, row: RowInput) -> None:
        read = self._prompts.get(row.slot, [])[: row.start]
        self._prompts[row.slot] = [*read, *row.tokens]
        if tuple(self._prompts[row.slot]) not in self._whole:
            return  # a prompt is answered once, when all of it was read
        prompt = self._tokenizer.decode(self._prompts[row.slot])
        answer = self._answer(prompt, row.mixture)
        self._scripts[row.slot] = self._tokenizer.encode(answer, add_special_tokens=False)

    def drop_all_but(self, adapters: Container[str]) -> None:
        pass

    def forget(self, slot: int) -> None:
        self._prompts.pop(slot, None)


class _EveryAdapter:
    """All adapters are in memory, and take none of it."""

    identities = ()
    memory_bytes = loads = 0

    def acquire(self, experts: Sequence[Expert], *, load: bool = True) -> Readiness:
        return Readiness.READY

    def release(self, expert: Expert) -> None:
        pass

    def close(self) -> None:
        pass


class _Hashable:
    """Makes a key of a namespace: engines are found by their base."""

    def __init__(self, values: SimpleNamespace) -> None:
        self.__dict__.update(vars(values))


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, [])
    tokenizer = Tokenizer(bytes_only)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        additional_special_tokens=["<|im_start|>"],
        chat_template=_TEMPLATE,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_FACTS = BaseFacts(
    BASE_ID,
    BaseFingerprint(
        architecture="Fake",
        shapes=_sha256("shapes"),
        tokenizer=_sha256("bytes"),
        chat_template=_sha256(_TEMPLATE),
    ),
    {},
)
