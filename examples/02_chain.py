"""A chain over many questions at once, each answered by its own expert on one base.

python examples/02_chain.py
"""

from langchain_core.prompts import ChatPromptTemplate

from one4all_lc import One4All

one = One4All.load(max_tokens=48)
chain = ChatPromptTemplate.from_template("{question}") | one

QUESTIONS = (
    "What causes asthma?",
    "Which camera has the best zoom?",
    "How many teams are from Leeds?\nColumns: team, city, points",
    "Will it rain tomorrow?",
)

for question, answer in zip(
    QUESTIONS, chain.batch([{"question": text} for text in QUESTIONS]), strict=True
):
    print(f"{answer.response_metadata['expert']:>8}  {question.splitlines()[0]}")
    print(f"{'':>8}  {answer.text.splitlines()[0]}\n")
