"""Whatever comes, whenever it comes and goes: everybody gets the answer that it would get alone."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from tests.asking import adapter_bytes, engine_with, request
from tests.prompts import PROMPTS

WAIT = 120
SYSTEM = "You answer in one short sentence. " * 12


@pytest.fixture(scope="module")
def pool(base_nf4, experts):
    """Requests of every kind, and their serial answers."""
    rng = random.Random(0)
    kinds = [
        (),
        *((expert,) for expert in experts),
        ((experts[0], 0.7), (experts[1], 0.3)),
        ((experts[2], 0.5), (experts[3], 0.5), (experts[4], 0.25)),
    ]
    drawn = {"temperature": 0.9, "top_p": 0.95}
    requests = [
        request(
            base_nf4,
            " ".join(rng.sample(PROMPTS, rng.choice((1, 1, 2, 12)))),
            *kinds[i % len(kinds)],
            system=SYSTEM if rng.random() < 0.4 else None,
            max_tokens=rng.randint(1, 16),
            **(drawn | {"seed": i} if i % 6 == 5 else {}),
        )
        for i in range(2 * len(kinds))
    ]
    with engine_with(base_nf4, max_rows=1, prefix_bytes=0) as engine:
        return [(item, engine.submit(item).result(WAIT).tokens) for item in requests]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everybody_gets_its_serial_answer(base_nf4, experts, pool, monkeypatch, seed):
    rng = random.Random(seed)
    plans = [
        [(*rng.choice(pool), rng.choice((None, None, None, 0, 1, 4))) for _ in range(6)]
        for _ in range(4)
    ]
    monkeypatch.setattr("one4all_lc.engine.rows.PREFILL_TOKENS", rng.choice((64, 128, 256)))
    settings = {
        "max_rows": rng.choice((3, 5, 8)),
        "adapter_bytes": rng.choice((2, 6, 10)) * max(map(adapter_bytes, experts)),
        "prefix_bytes": rng.choice((0, 8 << 20)),
    }

    def submit(plan):
        """Ask one after another, and now and then read some tokens and stop."""
        asked = []
        for item, expected, stop in plan:
            handle = engine.submit(item)
            if stop is not None:
                list(islice(handle, stop))
                handle.cancel()
            asked.append((handle, expected))
        return asked

    with engine_with(base_nf4, **settings) as engine:
        with ThreadPoolExecutor(len(plans)) as threads:
            asked = [pair for part in threads.map(submit, plans) for pair in part]
        wrong = []
        for handle, expected in asked:
            answer = handle.result(WAIT)
            whole = answer.finish_reason != "cancelled"
            if answer.tokens != (expected if whole else expected[: len(answer.tokens)]):
                wrong.append((answer.tokens, expected))
        assert not wrong, settings
        engine.close(drain=True)  # the last end is counted after it was told
        stats = engine.stats()
    assert sum(stats.ended.values()) == len(asked)
    assert not set(stats.ended) - {"stop", "length", "cancelled"}
