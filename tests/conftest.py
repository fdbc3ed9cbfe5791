"""Fixtures that all tests share: a home of their own, free ports, and no leaks."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psutil
import pytest

# A shared machine may stall for a second: no example fails for having been slow.
hypothesis.settings.register_profile(
    "sage", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("sage")

# Threads that libraries start once per process and keep.
LASTING_THREADS = re.compile(
    r"^(Profile|IO loop|TCP-Executor|Dask-|fsspecIO|GlobalEventLoop|GlobalRequest|APILogWorker"
    r"|EventsWorker|BatchedQueue|QueueService|asyncio_\d+$|tqdm|AsyncIO Dask|OpenBLAS"
    r"|hypothesis|MainThread)",
    re.IGNORECASE,
)
# Helpers that multiprocessing starts once per process and keeps.
LASTING_PROCESSES = re.compile(r"multiprocessing\.(resource_tracker|forkserver)")
# What counts as a leak among open files; the rest (/dev, anon_inode, libraries) comes and goes.
LEAKING_FILES = re.compile(r"^(socket:|pipe:|/tmp/|/var/tmp/)|/pytest-")
SETTLE_S = 5.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaks(reason): what it leaves behind is meant, and why")
    # A shell starts background jobs with SIGINT ignored, which children inherit: Ctrl-C tests, and
    # the servers that they start, would not see it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _environment_restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def same_environment_in_each_module() -> Iterator[None]:
    """What a module's own fixtures set in ``os.environ`` ends with the module."""
    with _environment_restored():
        yield


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test, or the code under test, sets in ``os.environ`` ends with the test."""
    with _environment_restored():
        yield


@pytest.fixture(autouse=True)
def own_home(
    same_environment: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """No test reads or writes the developer's own settings, keys, services or model files.

    Tests with real servers share one home per module: theirs is left as their fixture set it.
    """
    shared = os.environ.get("SAGE_HOME")
    if shared and _has_mark(request.node, "e2e", "vllm"):
        return Path(shared)
    for variable in list(os.environ):
        if variable.startswith("SAGE_") and variable not in {"SAGE_VLLM_PYTHON", "SAGE_VLLM_ENV"}:
            monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("sage-home")
    monkeypatch.setenv("SAGE_HOME", str(home))
    return home


@pytest.fixture
def sage_home(own_home: Path) -> Path:
    """This test's ``SAGE_HOME``: empty, with config, data, state and cache to come below it."""
    return own_home


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives loopback ports that were free a moment ago, each once per test.

    Prefer binding port 0 yourself; this is for servers that must be told a number.
    """
    given: set[int] = set()

    def give() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in given:
                given.add(port)
                return port

    return give


@pytest.fixture(scope="session")
def make_classifier() -> Callable[..., Path]:
    """Makes a model of random weights that reads two texts: ``make_classifier(path, labels=1)``."""
    return _make_classifier


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cross-encoder with random weights."""
    return _make_classifier(tmp_path_factory.mktemp("models") / "tiny-reranker")


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a unit test that leaves threads, child processes, sockets or files behind."""
    node = request.node
    if _has_mark(node, "e2e", "vllm", "leaks"):
        yield
        return
    threads, children, files = _threads(), _children(), _files()
    yield
    deadline = time.monotonic() + SETTLE_S
    while True:
        left = [
            *(f"thread {thread.name!r}" for thread in _threads() - threads),
            *(f"process {child}" for child in _children() - children),
            *(f"open file {file}" for file in _files() - files),
        ]
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"{node.nodeid} leaves behind: {', '.join(sorted(left))}", pytrace=False)
        # Closing takes a moment (threads that were told to stop, cycles that hold sockets).
        gc.collect()
        time.sleep(0.02)


def _make_classifier(path: Path, labels: int = 1) -> Path:
    """A BERT that reads letters; its weights are wide enough to tell inputs apart."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(path)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.6,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def _has_mark(node: pytest.Item, *names: str) -> bool:
    return any(node.get_closest_marker(name) for name in names)


def _threads() -> set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if thread.is_alive() and not LASTING_THREADS.search(thread.name)
    }


def _children() -> set[str]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:  # it ended while we looked
            continue
        if not LASTING_PROCESSES.search(command):
            found.add(f"{child.pid} ({command[:120] or 'ended, not waited for'})")
    return found


def _files() -> set[str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:  # the descriptor of this very listing
            continue
        if LEAKING_FILES.search(target):
            found[link.name] = target
    ends = Counter(found.values())
    # A pipe with both ends here is a library's bell (pyarrow makes one per process), no child's.
    return {
        f"{name} -> {target}"
        for name, target in found.items()
        if not (target.startswith("pipe:") and ends[target] > 1)
    }
