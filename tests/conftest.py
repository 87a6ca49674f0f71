"""What several test files share: the real base, expert folders with random weights, data."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from one4all_lc.folder import read_expert
from tests.bases import write_base
from tests.experts import write_expert

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "adapters"

MakeExpert = Callable[..., Path]


@pytest.fixture(scope="session")
def base_nf4():
    """The embedded base as it is served by default."""
    from one4all_lc.base.loading import SharedBase

    return SharedBase.load(quantization="nf4")


@pytest.fixture(scope="session")
def base_fp32():
    """The embedded base without rounding, to compare arithmetic with."""
    import torch

    from one4all_lc.base.loading import SharedBase

    return SharedBase.load(quantization="none", dtype=torch.float32)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A tiny random llama that NF4 quantizes, with the embedded base's tokenizer."""
    return write_base(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def data_folder():
    """The public data sets; tests that need them are skipped elsewhere."""
    folder = Path(os.environ.get("ONE4ALL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the public data sets are not here: set ONE4ALL_DATA")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs `one4all` here: (exit code, standard output, standard error)."""
    from one4all_lc import cli

    def one4all(*arguments):
        monkeypatch.setattr(sys, "argv", ["one4all", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            sys.exit(cli.main())
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return one4all


@pytest.fixture
def make_expert(tmp_path) -> MakeExpert:
    """Return a function that writes an expert folder with random weights for a base."""
    return lambda name, *rest, **settings: write_expert(
        tmp_path / "experts" / name, *rest, **settings
    )


@pytest.fixture(scope="session")
def experts(base_nf4, tmp_path_factory):
    """Six experts of the default base, of several ranks, whose answers differ."""
    parent = tmp_path_factory.mktemp("six")
    return [
        read_expert(write_expert(parent / f"x{i}", base_nf4.facts, rank, i, 0.05), base_nf4.facts)
        for i, rank in enumerate((4, 8, 3, 5, 8, 4))
    ]
