"""An expert for others: its model card for the hub, and its files there."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from one4all_lc.card import CARD_FILE, PERPLEXITY, ExpertCard
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import CONFIG_FILE, EXEMPLARS_FILE, WEIGHTS_FILE, Expert, read_expert
from one4all_lc.hub import HUB_ID, upload

README = "README.md"

_LICENSES = {
    "apache-2.0": "apache-2.0",
    "bsd-3-clause": "bsd-3-clause",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc0": "cc0-1.0",
    "cc0-1.0": "cc0-1.0",
    "mit": "mit",
    "unlicense": "unlicense",
}
"""The hub's name of a license, by how cards write it, in lower case with hyphens."""


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Put an expert on the hub: its four files, and a model card made of its own.

    Args:
        folder: The expert's folder; a README.md in it is not taken, nor changed.
        repo_id: `owner/name`; made if it is not there.
        private: Whether a new repository is.
        revision: The branch; None takes the main one.
        message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        UnfitExpert: The folder must not be used.
        InvalidInput: The id is none, or the hub refuses it.
    """
    expert = read_expert(folder)
    if not HUB_ID.fullmatch(repo_id):
        msg = f"{repo_id!r} is no id on the hub: write owner/name."
        raise InvalidInput(msg)
    files: dict[str, Path | bytes] = {README: model_card(expert, repo_id).encode()}
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, EXEMPLARS_FILE):
        if (expert.folder / name).is_file():
            files[name] = expert.folder / name
    words = message or f"{expert.name} version {expert.card.version}"
    return upload(repo_id, files, words, private=private, revision=revision)


def model_card(expert: Expert, repo_id: str) -> str:
    """Return the text of the hub's README.md: metadata that it searches by, and what people read.

    Args:
        expert: The expert.
        repo_id: Where it will lie.
    """
    from huggingface_hub import EvalResult, ModelCardData

    card = expert.card
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out-rows",
            dataset_name=f"held-out rows of {card.name}",
            metric_type=name,
            metric_value=figures["expert"],
            metric_name=_words(name),
        )
        for name, figures in _figures(card)
    ]
    license_id = _license(card)
    data = ModelCardData(
        base_model=card.base,
        library_name="peft",
        pipeline_tag="text-generation",
        language=list(card.languages),
        license=license_id,
        license_name=str(card.training.get("license")) if license_id == "other" else None,
        tags=["lora", "one4all_lc", "langchain"],
        model_name=card.title if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(expert, repo_id)) + "\n"


def _body(expert: Expert, repo_id: str) -> Iterator[str]:
    card = expert.card
    yield f"# {card.title}\n\n{card.description}\n"
    yield (
        f"A LoRA expert of `{card.base}` for "
        "[one4all_lc](https://pypi.org/project/one4all_lc/), in PEFT's own format, version "
        f"{card.version}. Its base is known by a fingerprint: architecture "
        f"`{card.fingerprint.architecture}`, tokenizer `{card.fingerprint.tokenizer[:12]}`, chat "
        f"template `{card.fingerprint.chat_template[:12] or 'none'}`.\n"
    )
    yield from _usage(expert, repo_id)
    yield from _measured(card)
    yield "## Training\n"
    for name, value in _facts(card.training):
        yield f"- {name}: {value}"


def _usage(expert: Expert, repo_id: str) -> Iterator[str]:
    card = expert.card
    question = _quoted(expert.exemplars[0].text if expert.exemplars else "...")
    base, name = _quoted(card.base), _quoted(card.name)
    yield f"""## Use it in LangChain

```sh
pip install one4all_lc
one4all adopt {repo_id} --adapters adapters --name {card.name} --base {card.base}
```

```python
from one4all_lc import One4All

one = One4All.load("adapters", base={base})
one.invoke({question}, model={name})  # this expert
one.invoke({question})  # whichever expert the question belongs to
```

With PEFT alone: `PeftModel.from_pretrained(base, {_quoted(repo_id)})`.
"""
    if card.system_prompt:
        yield f"Its system prompt, in training as in use:\n\n> {card.system_prompt}"
    yield ""


def _measured(card: ExpertCard) -> Iterator[str]:
    figures = list(_figures(card))
    yield "## What it measured\n"
    if not figures:
        yield "Nothing was measured.\n"
        return
    quantized = card.metrics.get("quantization", "as loaded")
    yield (
        f"On held-out rows (split {card.metrics.get('split', '?')}), on the base as it is served "
        f"({quantized}), base and expert with the same system prompt. Versions are compared by "
        f"{_words(card.metric)}.\n"
    )
    yield "| metric | base | expert | 95 % interval | nearest training answer | rows |"
    yield "|---|---|---|---|---|---|"
    for name, found in figures:
        low_high = found.get("intervals", {}).get("expert")
        sure = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "–"
        nearest = f"{found['nearest']:.3f}" if "nearest" in found else "–"
        values = f"{found['base']:.3f} | {found['expert']:.3f} | {sure} | {nearest}"
        yield f"| {_words(name)} | {values} | {found['rows']} |"
    yield ""


def _facts(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a card says of its training, nested facts by both names."""
    for name, value in training.items():
        if isinstance(value, Mapping):
            yield from ((f"{_words(name)}, {inner}", text) for inner, text in _facts(value))
        elif value is not None:
            yield _words(name), _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, Mapping):
        return " ".join(_shown(item) for item in value.values())
    return " ".join(str(value).split())


def _figures(card: ExpertCard) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, found in card.metrics.items():
        known = isinstance(found, Mapping) and {"base", "expert", "rows"} <= found.keys()
        if known and all(isinstance(found[who], int | float) for who in ("base", "expert")):
            yield name, found


def _license(card: ExpertCard) -> str:
    written = str(card.training.get("license", "unknown"))
    if written == "unknown":
        return "unknown"
    return _LICENSES.get(re.sub(r"[\s_]+", "-", written.strip().lower()), "other")


def _quoted(text: str) -> str:
    """Write a text as Python does, in double quotes."""
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def _words(name: str) -> str:
    shown = {"rouge_l": "ROUGE-L", PERPLEXITY: "perplexity of the answers"}
    return shown.get(name, name.replace("_", " "))
