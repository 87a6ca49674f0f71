"""A LangGraph graph that asks every likely expert at once: all of them run in one batch.

python examples/08_graph_fan_out.py
"""

from langgraph.graph import END, START, MessagesState, StateGraph

from one4all_lc import One4All
from one4all_lc.agents import expert_node, fan_out

one = One4All.load(max_tokens=40)

graph = StateGraph(MessagesState)
graph.add_node("ask", expert_node(one))
graph.add_conditional_edges(START, fan_out(one.router, "ask", at_least=0.001), ["ask"])
graph.add_edge("ask", END)
app = graph.compile()

question = "Which camera is easy on eyes that are tired or ill?"
for message in app.invoke({"messages": [("user", question)]})["messages"][1:]:
    print(f"{message.response_metadata['expert']:>8}: {message.text.splitlines()[0]}")
print(app.get_graph().draw_mermaid())
