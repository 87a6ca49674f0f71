"""Routing as a step of a chain: `router | experts`, with a branch of your own for what is nobody's.

python examples/04_route_in_lcel.py
"""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough

from one4all_lc import One4All

one = One4All.load(max_tokens=40)
text = StrOutputParser()
nobodys = RunnableLambda(lambda _: "That is not a question for any of our experts.")


def expert_of(routed: dict):
    """Return what answers: LCEL runs a Runnable that a function returns."""
    best = routed["route"].best
    if best is None:
        return nobodys
    return RunnableLambda(lambda given: given["question"]) | one.bind(model=best) | text


chain = RunnableParallel(question=RunnablePassthrough(), route=one.router) | expert_of

for question in ("What are the symptoms of measles?", "How do I bake bread?"):
    print(f"{question}\n  {chain.invoke(question).splitlines()[0]}")

both = RunnableParallel(medical=one.bind(model="medical"), base=one.bind(model="base"))
for name, answer in both.invoke("What are the symptoms of measles?").items():
    print(f"{name:>8}: {answer.text.splitlines()[0]}")
