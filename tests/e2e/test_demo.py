"""The main job as a new user runs it: ``sage demo``, ``sage status``, ``sage down``."""

from __future__ import annotations

import json
import signal
import socket
import stat
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demo(stack):
    """Figures and answers of one whole run."""
    out = stack.home / "demo.json"
    done = stack.sage("demo", "--out", str(out), timeout=900)
    return {"text": done.stdout, **json.loads(out.read_text())}


def test_demo_indexes_the_standard_library_and_cites_the_right_sources(demo):
    figures = demo["figures"]
    assert figures["chunks"] >= 5000
    assert figures["chunks_per_s"] > 0
    assert figures["questions"] >= 20
    assert figures["judged"] == figures["questions"]
    assert figures["right_source_cited"] >= 0.8 * figures["judged"]
    assert figures["tokens"] > 0
    assert figures["dead_letters"] == 0
    for row in demo["answers"]:
        assert row["answer"].strip()
        assert row["sources"]
        assert row["answer_latency_ms"] > 0


def test_demo_prints_table_totals_and_addresses(demo):
    text = demo["text"]
    for row in demo["answers"]:
        assert row["question"].split()[0] in text
    for words in ("chunks indexed", "tokens generated", "p50", "p95", "Prefect UI", "gateway"):
        assert words in text


def test_repeated_ingest_is_skipped(demo, stack):
    out = stack.home / "again.json"
    stack.sage("demo", "--question", "How do I split a shell command line?", "--out", str(out))
    figures = json.loads(out.read_text())["figures"]
    done, total = figures["ingest_reused"].split("/")
    assert done == total
    assert figures["questions"] == 1


@pytest.mark.slow
def test_questions_that_nothing_was_tuned_on(demo, stack):
    """Written from general knowledge by somebody who had not seen corpus, chunks or answers: what
    a user's own questions may expect of one small embedding model (28 of 40 when it was written).
    """
    out = stack.home / "heldout.json"
    questions = Path(__file__).with_name("heldout_questions.jsonl")
    stack.sage("demo", "--questions", str(questions), "--out", str(out))
    figures = json.loads(out.read_text())["figures"]
    assert figures["judged"] == 40
    assert figures["right_source_cited"] >= 26


def test_own_documents_of_every_kind(stack, tmp_path):
    (tmp_path / "a.md").write_text("# Harbour\n\nThe lighthouse keeper of Arnhem is called Bodo.\n")
    (tmp_path / "b.txt").write_text("The ferry to Texel leaves at seven in the morning.\n")
    (tmp_path / "c.rst").write_text("Bread\n=====\n\nRye bread bakes for ninety minutes.\n")
    (tmp_path / "d.html").write_text("<html><body><p>The museum opens at ten.</p></body></html>")
    (tmp_path / "e.jsonl").write_text('{"text": "The mayor of the village is Ilse Quandt."}\n')
    out = tmp_path / "out.json"
    question = "Who is the lighthouse keeper of Arnhem?"
    stack.sage("demo", "--docs", str(tmp_path), "--question", question, "--out", str(out))
    (row,) = json.loads(out.read_text())["answers"]
    assert any("a.md" in source for source in row["sources"])
    assert row["answer"].strip()


def test_services_run_once_and_are_reused(stack):
    before = stack.services()
    done = stack.sage("up", "--worker")
    assert "run already" in done.stdout
    assert {n: s["pid"] for n, s in stack.services().items()} == {
        n: s["pid"] for n, s in before.items()
    }


def test_status_shows_all_healthy(stack):
    content = json.loads(stack.sage("status", "--json").stdout)
    assert content["supervisor"] == "running"
    kinds = {service["kind"] for service in content["services"]}
    assert {"prefect", "dask", "engine", "gateway"} <= kinds
    assert {service["status"] for service in content["services"]} == {"ready"}
    assert all(service["registered"] in (None, True) for service in content["services"])


def test_addresses_answer(stack):
    models = httpx.get(
        f"{stack.endpoint('gateway')}/v1/models",
        headers={"authorization": f"Bearer {stack.key}"},
        timeout=10,
    )
    assert {model["id"] for model in models.json()["data"]} >= {"smollm2-135m", "all-minilm-l6-v2"}
    ui = stack.endpoint("prefect").removesuffix("/api")
    page = httpx.get(ui, timeout=20, follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text.lower()
    dashboard = httpx.get(stack.endpoint("dask-dashboard"), timeout=20, follow_redirects=True)
    assert dashboard.is_success


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_the_gateway_wants_its_key(stack, headers):
    answer = httpx.get(f"{stack.endpoint('gateway')}/v1/models", headers=headers, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"]


def test_everything_listens_on_loopback_only(stack):
    pids = {process.pid for process in stack.processes()}
    listening = [
        connection
        for connection in psutil.net_connections("inet")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {connection.laddr.ip for connection in listening} <= {"127.0.0.1", "::1"}


def test_key_file_is_private(stack):
    file = stack.home / "config" / "master.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("demo", "--docs", "/nowhere/at/all", "--question", "x"), "does not exist"),
        (("demo", "--docs", "."), "no question"),
        (("demo", "--question", " "), "--question is empty"),
        (("demo", "--questions", "/nowhere.jsonl"), "is not a file"),
    ],
)
def test_wrong_use_is_named(stack, args, words):
    done = stack.sage(*args, check=False)
    assert done.returncode == 1
    assert words in done.stderr


def test_empty_corpus(stack, tmp_path):
    done = stack.sage("demo", "--docs", str(tmp_path), "--question", "x", check=False)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr


def test_binary_file_is_named(stack, tmp_path):
    (tmp_path / "data.txt").write_bytes(bytes(range(256)) * 64)
    done = stack.sage("demo", "--docs", str(tmp_path), "--question", "x", check=False)
    assert done.returncode == 1
    assert "data.txt" in done.stderr


def test_chat_one_shot(stack):
    done = stack.sage("chat", "Say hello.", timeout=120)
    assert done.stdout.strip()


# -- ports and interrupts: stacks of their own ----------------------------------------------------


def test_explicit_port_that_is_taken(fresh_stack):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = fresh_stack.sage("up", "--gateway-port", str(port), check=False)
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "taken" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["started, process", "ingest:", "answer:"])
def test_interrupt_leaves_no_process(fresh_stack, phase, tmp_path):
    (tmp_path / "a.md").write_text("\n\n".join(f"Fact {n}: {n * n} squares." for n in range(400)))
    questions = tmp_path / "questions.jsonl"
    lines = [json.dumps({"question": f"What is fact {n}?"}) for n in range(40)]
    questions.write_text("\n".join(lines))
    args = ("demo", "--docs", str(tmp_path / "a.md"), "--questions", str(questions))
    process = fresh_stack.popen(*args)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if phase in line:
            break
    else:
        pytest.fail(f"{phase!r} was never printed:\n{''.join(seen)}")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=90)
    assert process.returncode == 130, "".join(seen) + rest
    assert not fresh_stack.processes()
