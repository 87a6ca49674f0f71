"""One4All in its parts: a base, its engine, a library, one expert, a router.

python examples/03_parts.py
"""

from one4all_lc import ChatExpert, Engine, Library, SemanticRouter, SharedBase
from one4all_lc.library import default_adapters

base = SharedBase.load(quantization="nf4")
print(f"{base.facts.id} as {base.quantization}: {base.memory_bytes / 1e6:.0f} MB")

library = Library(default_adapters(), base.facts)
router = SemanticRouter(library=library)
sql = ChatExpert(engine=Engine.of(base), library=library, model="sql")

question = "Which cities have more than 3 teams?\nColumns: team, city, points"
print(router.invoke(question).explain())
print(sql.invoke(question).text)
