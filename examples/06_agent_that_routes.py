"""An agent whose turns are answered by the expert of their domain, its own model for the rest.

python examples/06_agent_that_routes.py
"""

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver

from one4all_lc import ExpertRouterMiddleware, One4All

one = One4All.load(max_tokens=48)
agent = create_agent(
    one.model_copy(update={"model": "base"}),  # any chat model
    middleware=[ExpertRouterMiddleware(one)],
    checkpointer=InMemorySaver(),
)
config = {"configurable": {"thread_id": "1"}}

for question in (
    "What do owners say about the zoom of the Canon PowerShot?",
    "How many singers are from France?\nColumns: singer, country",
    "Who are you?",
):
    state = agent.invoke({"messages": [("user", question)]}, config)
    answer = state["messages"][-1]
    best = state["expert_route"]["best"]
    print(f"{question.splitlines()[0]}\n  {best or 'own model'}: {answer.text.splitlines()[0]}")
