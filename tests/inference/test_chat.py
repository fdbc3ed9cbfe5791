"""``sage chat``: the conversation, its commands, and Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from sage_prefect.cli import chat
from sage_prefect.common.errors import EngineUnavailable, SageError, UnknownNameError
from sage_prefect.inference.client import UnifiedInferenceClient


def frame(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"model": "m", "choices": [choice]}) + b"\n\n"


def script(exchange: Any) -> None:
    """Answers with the last word of the question; 'forever' has no end, 'die' breaks off."""
    if exchange.path == "/v1/models":
        names = ["all-minilm-l6-v2", "other", "smollm2-135m"]
        exchange.answer(200, {"data": [{"id": name} for name in names]})
        return
    word = exchange.json()["messages"][-1]["content"].split()[-1]
    exchange.start_stream()
    exchange.send(frame(f"<{word}"))
    while word == "forever":
        if exchange.server.release.wait(0.01):
            return
        exchange.send(frame("."))
    if word != "die":
        exchange.send(frame(">", "stop") + b"data: [DONE]\n\n")
    exchange.end_stream()


@pytest.fixture
def server(serve: Any) -> Any:
    return serve(script)


@pytest.fixture
def talk(server: Any) -> Iterator[chat.Conversation]:
    with UnifiedInferenceClient.create(server.url, retries=0) as client:
        yield chat.Conversation(client, "m", "be brief", {"temperature": 0.0, "max_tokens": None})


def roles(talk: chat.Conversation) -> list[str]:
    return [message["role"] for message in talk.messages]


def lines(*texts: str | type[BaseException]) -> Callable[[], str]:
    source = iter(texts)

    def read() -> str:
        text = next(source, EOFError)
        if isinstance(text, str):
            return text
        raise text

    return read


def test_the_conversation_goes_along(talk: chat.Conversation, server: Any) -> None:
    shown: list[str] = []
    assert talk.ask("say a", shown.append).text == "<a>"
    assert talk.ask("say b", shown.append).text == "<b>"
    assert "".join(shown) == "<a><b>"
    body = server.requests[-1].json()
    assert [message["content"] for message in body["messages"]] == [
        "be brief",
        "say a",
        "<a>",
        "say b",
    ]
    assert body["temperature"] == 0.0
    assert "max_tokens" not in body
    assert server.requests[-1].headers["x-sage-band"] == "interactive"


def test_a_stopped_answer_stays_and_ends_on_the_server(
    talk: chat.Conversation, server: Any
) -> None:
    def show(text: str) -> None:
        if text == ".":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("forever", show)
    assert talk.messages[-1]["content"].startswith("<forever")
    assert server.client_gone.wait(10)
    assert talk.ask("again", lambda text: None).text == "<again>"


def test_a_question_that_failed_is_forgotten(talk: chat.Conversation) -> None:
    with pytest.raises(EngineUnavailable):
        talk.ask("die", lambda text: None)
    assert roles(talk) == ["system"]


def test_run(talk: chat.Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(talk, lines("", "say a", KeyboardInterrupt, "die", "say b", "/exit", "never"))
    output = capsys.readouterr()
    assert "<a>" in output.out
    assert "<b>" in output.out
    assert "never" not in output.out
    assert "/exit or Ctrl-D" in output.out
    assert "before the answer was finished" in output.err
    assert roles(talk) == ["system", "user", "assistant", "user", "assistant"]


def test_end_of_input_leaves(talk: chat.Conversation) -> None:
    chat.run(talk, lines())


def test_commands(talk: chat.Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.ask("x", lambda text: None)
    assert chat.command(talk, "/new")
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert chat.command(talk, "/system be long")
    assert talk.messages == [{"role": "system", "content": "be long"}]
    assert chat.command(talk, "/models")
    assert "other" in capsys.readouterr().out
    assert chat.command(talk, "/model other")
    assert talk.model == "other"
    with pytest.raises(UnknownNameError, match="Did you mean 'other'"):
        chat.command(talk, "/model othr")
    assert chat.command(talk, "/what")
    assert "/exit" in capsys.readouterr().out
    assert not chat.command(talk, "/exit")


def test_model_choice(talk: chat.Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat.choose_model(talk.client, None) == "smollm2-135m"
    monkeypatch.setenv("SAGE_ENGINES__LLM", "not-there")
    assert chat.choose_model(talk.client, None) == "other"  # not the embedding model


def test_no_chat_model(serve: Any) -> None:
    server = serve(lambda exchange: exchange.answer(200, {"data": [{"id": "all-minilm-l6-v2"}]}))
    with (
        UnifiedInferenceClient.create(server.url) as client,
        pytest.raises(SageError, match="offers no chat model"),
    ):
        chat.choose_model(client, None)


def test_one_question(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.chat("say a", url=server.url)
    assert capsys.readouterr().out == "<a>\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("say b\n"))
    chat.chat(url=server.url)
    assert capsys.readouterr().out == "<b>\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(SageError, match="no question"):
        chat.chat(url=server.url)


TERMINAL = "import sys, typer; from sage_prefect.cli.chat import chat; typer.run(chat)"


def test_control_c_in_a_terminal(server: Any) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, "--url", server.url],
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(child)
    os.set_blocking(parent, False)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 60
        while text not in shown:
            assert process.poll() is None or text in shown, shown
            assert time.monotonic() < deadline, shown
            try:
                shown += os.read(parent, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        shown = shown.split(text, 1)[1]

    try:
        until(b"> ")
        os.write(parent, b"forever\n")
        until(b"<forever...")
        os.kill(process.pid, signal.SIGINT)
        until(b"[stopped]")
        until(b"> ")
        os.write(parent, b"say a\n")
        until(b"<a>")
        until(b"> ")
        os.write(parent, b"/exit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)
