"""Answers from documents: one embedding decides the expert and finds the documents, in Chroma.

`pip install langchain-chroma`; then `python examples/07_documents.py`
"""

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document

from one4all_lc import DomainRetriever, One4All, answer_from_documents
from one4all_lc.routing.embeddings import PassageEmbeddings

WRITTEN = {
    "mobile": [
        "The Aurora 3 runs for two days on one charge, says everybody who owns it.",
        "The camera of the Aurora 3 blurs whatever moves; in daylight its colours are true.",
        "The Lumen Mini fits every pocket, but its loudspeaker rattles.",
    ],
    "medical": [
        "Brill fever is a made-up illness: three days of high temperature, then a rash.",
        "Rest and much water are all that Brill fever needs; it passes within a week.",
    ],
}

one = One4All.load(max_tokens=48)
client, embeddings = chromadb.EphemeralClient(), PassageEmbeddings()
stores = {
    domain: Chroma(
        collection_name=domain,
        client=client,
        embedding_function=embeddings,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    for domain in WRITTEN
}
for domain, texts in WRITTEN.items():
    stores[domain].add_documents([Document(text) for text in texts])

chain = answer_from_documents(one, DomainRetriever(router=one.router, stores=stores, k=2))

for question in ("How long does the battery of the Aurora 3 last?", "What helps with Brill fever?"):
    print(question)
    for part in chain.stream(question):
        print(part.get("answer", ""), end="", flush=True)
        if "sources" in part:
            print(
                f"\n  {len(part['cited'])} cited; from {[d.page_content for d in part['sources']]}"
            )
