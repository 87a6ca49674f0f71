"""One question, its expert, and why: `python examples/01_ask.py`."""

from one4all_lc import One4All

one = One4All.load(max_tokens=48)

for chunk in one.stream("What do owners say about the battery of the Nokia 6610?"):
    print(chunk.text, end="", flush=True)
    route = chunk.response_metadata.get("route")
print()
print(f"answered by {route['best']}; the nearest exemplar is {route['nearest'][0]['text']!r}")
