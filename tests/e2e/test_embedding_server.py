"""The embedding server as a process, over the real model, beside SentenceTransformer.encode."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from sage_prefect.inference.client import UnifiedInferenceClient
from sage_prefect.platform.models import resolve

pytestmark = pytest.mark.e2e

MODEL = "all-minilm-l6-v2"
# Everything that tokenisers and padding get wrong, and lengths from nothing to far too much.
TEXTS = [
    "",
    " ",
    "a",
    "Return the number of bytes read.",
    "日本語のテキスト, ünïcödé, עברית, 😀👩‍👩‍👧",
    "\x00\x01 control \t\r\n characters \ufeff",
    "x" * 5000,
    "word " * 1000,
    *(" ".join(["Open the file and return a stream."] * n) for n in range(1, 60, 3)),
]
FORCE_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Server:
    """A server process on a port of its own choice."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "sage_prefect.platform.embedding_server"]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--model", MODEL, "--port", "0", *arguments], stderr=stderr
            )
        try:
            self.until(lambda: "listening on" in self.text)
            found = re.search(r"listening on (\S+),", self.text)
            assert found
            self.url = found[1]
        except BaseException:
            self.kill()
            raise

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], bool], limit_s: float = 180) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def wait_ready(self) -> None:
        with httpx.Client(trust_env=False) as client:
            self.until(lambda: client.get(f"{self.url}/health").status_code == 200)

    def metric(self, name: str) -> float:
        with httpx.Client(trust_env=False) as client:
            page = client.get(f"{self.url}/metrics").text
        found = re.search(rf"^sage_embedding_{name} (\S+)$", page, re.MULTILINE)
        assert found, page
        return float(found[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(log=tmp_path_factory.mktemp("server") / "log")
    try:
        started.wait_ready()
        yield started
        assert started.stop() == 0, started.text
    finally:
        started.kill()


@pytest.fixture
def client(server: Server) -> Iterator[UnifiedInferenceClient]:
    with UnifiedInferenceClient.create(server.url, timeout_s=120, embed_texts=7) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Any:
    """``SentenceTransformer`` itself: what the server must agree with."""
    os.environ.update(FORCE_OFFLINE)
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(resolve(MODEL).path), device="cpu", local_files_only=True)


def test_equals_sentence_transformer(client: UnifiedInferenceClient, plain: Any) -> None:
    vectors = client.embed(TEXTS, model=MODEL)
    expected = plain.encode(TEXTS)
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def test_many_clients_get_each_their_own(client: UnifiedInferenceClient) -> None:
    # Put together with other texts, or alone: the same vectors.
    whole = client.embed(TEXTS, model=MODEL)
    with ThreadPoolExecutor(16) as pool:
        alone = list(pool.map(lambda text: client.embed([text], model=MODEL)[0], TEXTS))
    np.testing.assert_allclose(np.stack(alone), whole, atol=1e-5, rtol=0)


def test_openai_package(server: Server, client: UnifiedInferenceClient) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        answer = other.embeddings.create(model=MODEL, input=["hello", ""])
        numbers = other.embeddings.create(model=MODEL, input="hello", encoding_format="float")
        with pytest.raises(openai.NotFoundError, match=MODEL):
            other.embeddings.create(model="gpt", input="x")
        assert [model.id for model in other.models.list()] == [MODEL]
    ours = client.embed(["hello", ""], model=MODEL)
    np.testing.assert_allclose([item.embedding for item in answer.data], ours, atol=1e-6)
    np.testing.assert_allclose(numbers.data[0].embedding, ours[0], atol=1e-5)
    assert answer.usage.prompt_tokens == 3 + 2


def test_usage_counts_what_the_model_read(server: Server) -> None:
    with httpx.Client(trust_env=False, timeout=60) as client:
        body = {"model": MODEL, "input": ["word " * 1000, "a"]}
        answer = client.post(f"{server.url}/v1/embeddings", json=body).json()
    assert answer["usage"]["prompt_tokens"] == 256 + 3


def test_a_client_that_leaves_frees_the_queue(server: Server) -> None:
    before = server.metric("dropped_texts_total")
    body = orjson.dumps({"model": MODEL, "input": ["word " * 300] * 500})
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        "content-type: application/json\r\n\r\n"
    )
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + body)
        server.until(lambda: server.metric("queued_texts") > 0)
    server.until(lambda: server.metric("queued_texts") == 0, limit_s=30)
    assert server.metric("dropped_texts_total") > before


def test_stops_after_what_is_in_flight(tmp_path: Path) -> None:
    server = Server("--workers", "1", log=tmp_path / "log")
    try:
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code in (200, 503)
        server.wait_ready()
        answers: list[np.ndarray[Any, Any]] = []

        def ask() -> None:
            with UnifiedInferenceClient.create(server.url, retries=0) as client:
                answers.append(client.embed(["word " * 200] * 60, model=MODEL))

        asking = threading.Thread(target=ask)
        asking.start()
        server.until(lambda: server.metric("queued_texts") > 0)
        assert server.stop() == 0, server.text
        asking.join()
        assert answers[0].shape == (60, 384)
    finally:
        server.kill()


def test_a_damaged_model(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(resolve(MODEL).path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").write_bytes(b"this is no model")
    command = [sys.executable, "-m", "sage_prefect.platform.embedding_server"]
    done = subprocess.run(
        [*command, "--model", str(folder), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert f"error: the model at {folder} cannot be loaded" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


# -- models of other shapes -------------------------------------------------------------------


def small_model(folder: Path, *, activation: str, pooling: str, normalize: bool) -> Path:
    """A BERT with random weights, in sentence-transformers layout, with MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    source = resolve(MODEL).path
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_act=activation,
    )
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copyfile(source / name, folder / name)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules[: 3 if normalize else 2])
    ]
    (folder / "modules.json").write_bytes(orjson.dumps(listed))
    (folder / "sentence_bert_config.json").write_bytes(
        orjson.dumps({"max_seq_length": 48, "do_lower_case": False})
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(
        orjson.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean",
                "pooling_mode_max_tokens": pooling == "max",
                "pooling_mode_mean_sqrt_len_tokens": False,
            }
        )
    )
    return folder


@pytest.mark.parametrize(
    ("activation", "pooling", "normalize", "encoder"),
    [
        ("gelu", "mean", True, "BertEncoder"),
        ("gelu", "cls", False, "BertEncoder"),
        ("gelu", "max", True, "SentenceTransformerEncoder"),
        ("relu", "mean", False, "SentenceTransformerEncoder"),
    ],
)
def test_every_model_equals_sentence_transformer(
    tmp_path: Path, plain: Any, activation: str, pooling: str, normalize: bool, encoder: str
) -> None:
    from sage_prefect.platform.embedding_server.server import load_encoder

    folder = small_model(
        tmp_path / "model", activation=activation, pooling=pooling, normalize=normalize
    )
    loaded = load_encoder(folder, "cpu")
    assert type(loaded).__name__ == encoder
    assert (loaded.dimension, loaded.max_tokens) == (32, 48)
    reference = type(plain)(str(folder), device="cpu", local_files_only=True)
    tokens = loaded.tokenize(TEXTS)
    assert any(text.truncated for text in tokens)
    assert not tokens[3].truncated
    vectors = loaded.encode([text.ids for text in tokens])
    np.testing.assert_allclose(vectors, reference.encode(TEXTS), atol=1e-5, rtol=0)


def test_the_general_encoder_equals_the_fast_one(plain: Any) -> None:
    from sage_prefect.platform.embedding_server.bert import BertEncoder
    from sage_prefect.platform.embedding_server.sentence_transformer import (
        SentenceTransformerEncoder,
    )

    path = resolve(MODEL).path
    fast, general = BertEncoder(path, "cpu"), SentenceTransformerEncoder(path, "cpu")
    assert fast.tokenize(TEXTS) == general.tokenize(TEXTS)
    ids = [text.ids for text in fast.tokenize(TEXTS)]
    np.testing.assert_allclose(fast.encode(ids), general.encode(ids), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
def test_half_precision_changes_vectors_little(fast: bool) -> None:
    from sage_prefect.platform.embedding_server.bert import BertEncoder
    from sage_prefect.platform.embedding_server.sentence_transformer import (
        SentenceTransformerEncoder,
    )

    path = resolve(MODEL).path
    kind = BertEncoder if fast else SentenceTransformerEncoder
    whole, half = BertEncoder(path, "cpu"), kind(path, "cpu", "bfloat16")
    ids = [text.ids for text in whole.tokenize(TEXTS)]
    cosine = (whole.encode(ids) * half.encode(ids)).sum(axis=1)
    assert 0.999 < cosine.min() < 1.0 - 1e-7
