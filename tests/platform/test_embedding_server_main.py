"""The command line and what a model folder must be; no model is loaded here."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform.embedding_server.__main__ import main
from sage_prefect.platform.embedding_server.bert import Architecture, UnsupportedModel
from sage_prefect.platform.embedding_server.encoder import finite, pad, resolve_dtype
from sage_prefect.platform.embedding_server.server import ServerOptions, choose_parallelism
from sage_prefect.platform.models import resolve


def test_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "no-such-model", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "error: model 'no-such-model' is not on this machine" in error
    assert "hint:" in error


def test_a_chat_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "smollm2-135m", "--port", "0"]) == 1
    assert "sage llm serve" in capsys.readouterr().err


def test_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "all-minilm-l6-v2", "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_open_address_needs_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--model", "m", "--host", "0.0.0.0"]) == 1
    assert "--api-key-env" in capsys.readouterr().err
    assert main(["--model", "m", "--api-key-env", "NOT_SET"]) == 1
    assert "NOT_SET, which is not set" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers", "--threads", "--max-batch-tokens"])
def test_numbers_are_positive(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "m", option, "0"])
    assert "not positive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "device", "cores", "expected"),
    [
        ({}, "cpu", 2, (2, 1, 1024)),
        ({}, "cpu", 32, (8, 4, 1024)),
        ({"threads": 1}, "cpu", 8, (1, 1, 1024)),
        ({"workers": 1}, "cpu", 4, (1, 4, 1024)),
        ({"workers": 4, "threads": 2}, "cpu", 2, (4, 1, 1024)),
        ({}, "cuda", 16, (1, 16, 16384)),
        ({"token_budget": 99}, "cuda", 16, (1, 16, 99)),
    ],
)
def test_parallelism(
    options: dict[str, int], device: str, cores: int, expected: tuple[int, int, int]
) -> None:
    plan = choose_parallelism(ServerOptions("m", **options), device, cores)  # type: ignore[arg-type]
    assert (plan.workers, plan.threads_each, plan.token_budget) == expected


# -- number formats ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "float16"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float32", "cuda:1", "float32"),
    ],
)
def test_number_format(dtype: str, device: str, expected: str) -> None:
    assert str(resolve_dtype(dtype, device)) == f"torch.{expected}"


def test_number_formats_that_do_not_fit() -> None:
    with pytest.raises(ServiceError, match="'int8' is not known"):
        resolve_dtype("int8", "cpu")
    with pytest.raises(ServiceError, match="a CPU computes float16 slower"):
        resolve_dtype("float16", "cpu")


def test_vectors_that_are_no_numbers_are_not_served() -> None:
    good = np.ones((2, 3), dtype=np.float32)
    assert finite(good, "torch.float16") is good
    bad = good.copy()
    bad[1, 2] = np.inf
    with pytest.raises(ServiceError, match="not finite in float16") as caught:
        finite(bad, "torch.float16")
    assert "--dtype float32" in caught.value.hint


def test_padding() -> None:
    ids, mask = pad([[1, 2], [3]], 9)
    assert ids.tolist() == [[1, 2], [3, 9]]
    assert mask.tolist() == [[True, True], [True, False]]
    ids, mask = pad([[1, 2], [3]], 9, left=True)
    assert ids.tolist() == [[1, 2], [9, 3]]
    assert pad([[]], 0)[0].tolist() == [[0]]


# -- which folders the fast encoder takes ---------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configuration files of the default model, to be spoiled."""
    source = resolve("all-minilm-l6-v2").path
    target = tmp_path / "model"
    (target / "1_Pooling").mkdir(parents=True)
    for name in (
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
    ):
        shutil.copyfile(source / name, target / name)
    return target


def test_the_default_model_is_taken(folder: Path) -> None:
    assert Architecture.read(folder) == Architecture(
        layers=6,
        heads=12,
        epsilon=1e-12,
        pad_id=0,
        max_tokens=256,
        pooling="mean",
        normalize=True,
    )


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    file.write_bytes(orjson.dumps(edit(orjson.loads(file.read_bytes()))))


@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        ("config.json", lambda c: c | {"model_type": "mpnet"}, "model_type=mpnet"),
        ("config.json", lambda c: c | {"hidden_act": "relu"}, "hidden_act=relu"),
        ("config.json", lambda c: c | {"position_embedding_type": "relative_key"}, "relative_key"),
        ("config.json", lambda c: c | {"is_decoder": True}, "is_decoder=True"),
        ("modules.json", lambda m: m[:1], "modules"),
        ("modules.json", lambda m: [*m, m[2] | {"type": "x.Dense"}], "Dense"),
        ("sentence_bert_config.json", lambda c: c | {"do_lower_case": True}, "lower-casing"),
        ("sentence_bert_config.json", lambda c: c | {"query_length": 3}, "query_length"),
        ("sentence_bert_config.json", lambda c: {}, "no max_seq_length"),
        (
            "config_sentence_transformers.json",
            lambda c: c | {"default_prompt_name": "query"},
            "default prompt 'query'",
        ),
        ("1_Pooling/config.json", lambda c: c | {"pooling_mode_max_tokens": True}, "max_tokens"),
        ("1_Pooling/config.json", lambda c: {}, r"pools by \[\]"),
    ],
)
def test_what_is_different_is_refused(
    folder: Path, name: str, edit: Callable[[Any], Any], why: str
) -> None:
    change(folder / name, edit)
    with pytest.raises(UnsupportedModel, match=why):
        Architecture.read(folder)


def test_missing_and_damaged_files(folder: Path) -> None:
    (folder / "modules.json").write_text("{")
    with pytest.raises(ServiceError, match="is not JSON"):
        Architecture.read(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(UnsupportedModel, match="is not there"):
        Architecture.read(folder)
