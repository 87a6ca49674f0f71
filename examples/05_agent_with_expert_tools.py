"""An agent whose tools are experts: `expert_tools` makes one of each.

The agent's own model may be any. Here it is the small base, which would not think of asking: its
first call is made to use a tool, and the form of that call is enforced.

python examples/05_agent_with_expert_tools.py
"""

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call

from one4all_lc import One4All, expert_tools

one = One4All.load(max_tokens=48)


@wrap_model_call
def ask_an_expert_first(request, handler):
    """Enforce a call until there is a tool's answer."""
    asked = any(message.type == "tool" for message in request.messages)
    return handler(request if asked else request.override(tool_choice="any"))


agent = create_agent(
    one.model_copy(update={"model": "base"}),
    expert_tools(one),
    system_prompt="Ask the expert of the question's domain, then answer in one sentence.",
    middleware=[ask_an_expert_first],
)
state = agent.invoke({"messages": [("user", "What causes hay fever?")]})
for message in state["messages"]:
    calls = (
        ", ".join(f"{call['name']}({call['args']})" for call in message.tool_calls or [])
        if (message.type == "ai")
        else ""
    )
    print(f"{message.type:>6}: {calls or message.text.splitlines()[0]}")
