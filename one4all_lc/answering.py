"""Answers from documents, by the expert of the question's domain, with the sources that they cite.

retriever = DomainRetriever(router=one.router, stores={"mobile": reviews, "medical": leaflets})
chain = answer_from_documents(one, retriever)
chain.invoke("Which phone has the best battery?")["sources"]
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import (
    AddableDict,
    Runnable,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnablePassthrough,
)

from one4all_lc.card import BASE
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.answerable import answerable
from one4all_lc.retrieval import DomainRetriever, Retrieved
from one4all_lc.routing.question import RouterInput
from one4all_lc.routing.route import Route

if TYPE_CHECKING:
    from one4all_lc.experts.chat import ChatExpert

PROMPT = ChatPromptTemplate(
    [
        (
            "system",
            "Answer from these documents alone. Cite each that you use by its number, such as "
            "[1].\n\n{documents}",
        ),
        MessagesPlaceholder("messages"),
    ]
)
"""What `answer_from_documents` asks, unless told otherwise."""

# [2], [1, 3] and, since \d is a digit of any script, [۲].
_CITATION = re.compile(r"\[\s*(\d{1,4}(?:\s*[,،;]\s*\d{1,4})*)\s*\]")


class Answer(TypedDict):
    """What `answer_from_documents` returns.

    Attributes:
        messages: The conversation that was asked.
        route: Whose question it is, and why.
        documents: The documents that were given, in the order of their numbers.
        answer: The answer.
        cited: The numbers that it cites, in the order of first citation; empty if it cites none.
        sources: The documents of those numbers; if it cites none, all that were given.
    """

    messages: list[BaseMessage]
    route: Route
    documents: list[Document]
    answer: str
    cited: list[int]
    sources: list[Document]


def answer_from_documents(
    one: "ChatExpert",
    retriever: DomainRetriever,
    *,
    prompt: BasePromptTemplate[Any] = PROMPT,
) -> Runnable[RouterInput, Answer]:
    """Return a Runnable that answers a question from the documents of its domain.

    The retriever finds documents, and the expert that it routed to answers, the base where it
    abstained. Without documents the conversation is asked as it is, without the prompt.

    It takes what the router takes. Of messages the last human one is searched by and all are
    asked. `stream` yields parts of an `Answer` that add up to it: first route and documents, then
    the answer piece by piece, last the citations.

    Args:
        one: Asks the experts; `One4All` or `ChatExpert` with the experts of the router.
        retriever: Finds the documents.
        prompt: Takes `documents`, numbered, and `messages` or `question`, the text alone.

    Raises:
        InvalidInput: The prompt does not take those.

    Example:
        chain = answer_from_documents(one, retriever)
        chain.invoke("Which phone has the best battery?")["sources"]
        for part in chain.stream("Which phone has the best battery?"):
            print(part.get("answer", ""), end="")
    """
    _check_prompt(prompt)

    chain = (
        _finding(one, retriever)
        | RunnablePassthrough.assign(answer=_asking(one, prompt))
        # One last part: two assigned keys would come in any order, each from a thread of its own.
        | RunnableGenerator(_with_citations, _awith_citations)
    )
    return cast("Runnable[RouterInput, Answer]", chain.with_config(run_name="AnswerFromDocuments"))


def _finding(
    one: "ChatExpert", retriever: DomainRetriever
) -> RunnableLambda[RouterInput, dict[str, Any]]:
    def find(asked: RouterInput, config: RunnableConfig) -> dict[str, Any]:
        return _found(asked, retriever.retrieve(asked, config), one)

    async def afind(asked: RouterInput, config: RunnableConfig) -> dict[str, Any]:
        return _found(asked, await retriever.aretrieve(asked, config), one)

    return RunnableLambda(find, afind, name="find")


def _asking(one: "ChatExpert", prompt: BasePromptTemplate[Any]) -> Runnable[dict[str, Any], str]:
    def ask(found: dict[str, Any]) -> Runnable[Any, str]:
        # A Runnable that a lambda returns is run in its place, streamed if the lambda is.
        expert = one.bind(model=found["route"].best or BASE) | StrOutputParser()
        if not found["documents"]:
            return RunnableLambda(_conversation) | expert
        return RunnableLambda(_variables) | prompt | expert

    return RunnableLambda(ask, name="ask").with_types(output_type=str)


def _check_prompt(prompt: BasePromptTemplate[Any]) -> None:
    takes = set(prompt.input_variables)
    known = {"documents", "messages", "question"}
    if "documents" in takes and len(takes) > 1 and takes <= known:
        return
    msg = (
        f"The prompt takes {', '.join(sorted(takes)) or 'nothing'}: it must take documents, and "
        "messages or question."
    )
    raise InvalidInput(msg)


def _found(asked: RouterInput, retrieved: Retrieved, one: "ChatExpert") -> dict[str, Any]:
    route = answerable(retrieved.route, one.library)
    return {"messages": _messages(asked), "route": route, "documents": retrieved.documents}


def _messages(asked: RouterInput) -> list[BaseMessage]:
    """Return the whole conversation, in which `question_of` found the question."""
    if isinstance(asked, Mapping):
        asked = next(asked[key] for key in ("question", "input", "messages") if key in asked)
        return _messages(asked)
    if isinstance(asked, str):
        return [HumanMessage(asked)]
    if isinstance(asked, PromptValue):
        return asked.to_messages()
    return [asked] if isinstance(asked, BaseMessage) else convert_to_messages(asked)


def _conversation(found: dict[str, Any]) -> list[BaseMessage]:
    return list(found["messages"])


def _variables(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a prompt may take."""
    numbered = enumerate(found["documents"], 1)
    return {
        "documents": "\n\n".join(f"[{i}] {item.page_content.strip()}" for i, item in numbered),
        "messages": found["messages"],
        "question": found["route"].question,
    }


def _with_citations(parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    whole = AddableDict()
    for part in parts:
        yield AddableDict(part)
        whole += AddableDict(part)
    yield _citations(whole)


async def _awith_citations(parts: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    whole = AddableDict()
    async for part in parts:
        yield AddableDict(part)
        whole += AddableDict(part)
    yield _citations(whole)


def _citations(found: dict[str, Any]) -> AddableDict:
    """Find the numbers that the answer cites; numbers of no document are not citations."""
    groups = _CITATION.findall(found["answer"])
    numbers = [int(number) for group in groups for number in re.findall(r"\d+", group)]
    documents = found["documents"]
    cited = [i for i in dict.fromkeys(numbers) if 1 <= i <= len(documents)]
    return AddableDict(cited=cited, sources=[documents[i - 1] for i in cited] or documents)
