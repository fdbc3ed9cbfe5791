"""``sage chat``: talk to a model through the gateway."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_prefect.cli.console import print_error
from sage_prefect.common.errors import SageError, UnknownNameError

if TYPE_CHECKING:
    from sage_prefect.inference.client import UnifiedInferenceClient
    from sage_prefect.inference.protocol import ChatResult

HELP = """\
/new           forget the conversation
/system TEXT   set the system prompt and start over
/model NAME    go on with another model
/models        list the models
/exit          leave (also Ctrl-D)
Ctrl-C stops an answer."""


def chat(
    question: Annotated[
        str | None,
        typer.Argument(help="Ask this and leave; none: a conversation, or the question on stdin."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model name; none: the default LLM.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Sampling temperature.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    url: Annotated[
        str | None,
        typer.Option(help="Base URL of a server; none: SAGE_BASE_URL, or the gateway here."),
    ] = None,
) -> None:
    """Talk to a model through the gateway; /help lists what can be typed."""
    from sage_prefect.inference.client import UnifiedInferenceClient

    parameters = {"temperature": temperature, "max_tokens": max_tokens}
    with UnifiedInferenceClient.create(url) as client:
        name = choose_model(client, model)
        talk = Conversation(client, name, system, parameters)
        if question is None and not sys.stdin.isatty():
            question = sys.stdin.read().strip()
        if question is not None:
            answer_once(talk, question)
            return
        print(f"{name} at {client.config.base_url}; /help for help")
        with _input_history():
            run(talk, lambda: input("> "))


def choose_model(client: UnifiedInferenceClient, wanted: str | None) -> str:
    """The model to talk to.

    Raises:
        UnknownNameError: the server does not offer ``wanted``.
        SageError: it offers no chat model at all.
    """
    from sage_prefect.common.settings import load_settings

    offered = client.models()
    if wanted is not None:
        if wanted not in offered:
            raise UnknownNameError("model", wanted, offered)
        return wanted
    engines = load_settings().engines
    if engines.llm in offered:
        return engines.llm
    others = [name for name in offered if name != engines.embedding]
    if not others:
        raise SageError(
            f"{client.config.base_url} offers no chat model.",
            hint="Start one with `sage llm serve`; `sage status` shows what runs.",
        )
    return others[0]


class Conversation:
    """What was said so far, and the model that goes on."""

    def __init__(
        self,
        client: UnifiedInferenceClient,
        model: str,
        system: str | None,
        parameters: dict[str, Any],
    ) -> None:
        self.client = client
        self.model = model
        self.parameters = parameters
        self.messages: list[dict[str, str]] = []
        self.start_over(system)

    def start_over(self, system: str | None = None) -> None:
        """Forget the conversation; the system prompt stays unless a new one is given."""
        kept = [message for message in self.messages[:1] if message["role"] == "system"]
        self.messages = [{"role": "system", "content": system}] if system else kept

    def ask(self, question: str, show: Callable[[str], None]) -> ChatResult:
        """Send a question and show the answer as it comes.

        An answer that is interrupted (Ctrl-C) stays in the conversation as far as it came; a
        question that failed does not.

        Raises:
            KeyboardInterrupt: the user stopped the answer; it has ended on the server too.
            EngineError: the call failed.
        """
        from sage_prefect.inference.protocol import CallContext

        self.messages.append({"role": "user", "content": question})
        stream = self.client.chat_stream(
            self.messages,
            model=self.model,
            context=CallContext(band="interactive"),
            **self.parameters,
        )
        answered = False
        try:
            with stream:
                for chunk in stream:
                    if chunk.text and chunk.index == 0:
                        show(chunk.text)
            answered = True
        except KeyboardInterrupt:
            answered = bool(stream.partial().text)
            raise
        finally:
            if answered:
                self.messages.append({"role": "assistant", "content": stream.partial().text})
            else:
                self.messages.pop()
        return stream.partial()


def answer_once(talk: Conversation, question: str) -> None:
    """Print one answer.

    Raises:
        SageError: there is no question, or the call failed.
    """
    if not question:
        raise SageError("there is no question.", hint='Write it: sage chat "What is ...?"')
    talk.ask(question, _show)
    print()


def run(talk: Conversation, read_line: Callable[[], str]) -> None:
    """The conversation, until /exit or the end of input. Errors are shown and it goes on."""
    while True:
        try:
            line = read_line().strip()
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)")
            continue
        except EOFError:
            print()
            return
        try:
            if line.startswith("/"):
                if not command(talk, line):
                    return
            elif line:
                result = talk.ask(line, _show)
                print(f"\n{_summary(result)}" if sys.stdout.isatty() else "")
        except KeyboardInterrupt:
            print(" [stopped]")
        except SageError as error:
            print()
            print_error(error)


def command(talk: Conversation, line: str) -> bool:
    """Do what a line that starts with a slash says; False ends the conversation."""
    name, _, argument = line[1:].partition(" ")
    argument = argument.strip()
    if name in ("exit", "quit"):
        return False
    if name == "new":
        talk.start_over()
    elif name == "system":
        talk.start_over(argument)
    elif name == "models":
        print("\n".join(talk.client.models()))
    elif name == "model":
        talk.model = choose_model(talk.client, argument or None)
        print(f"now talking to {talk.model}")
    else:
        print(HELP)
    return True


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _summary(result: ChatResult) -> str:
    engine = f" on {result.engine}" if result.engine else ""
    first = f", first after {result.ttft_ms / 1e3:.2f} s" if result.ttft_ms else ""
    return (
        f"\033[2m[{result.model}{engine}: {result.usage.completion_tokens} tokens in "
        f"{result.latency_ms / 1e3:.1f} s{first}]\033[0m"
    )


@contextmanager
def _input_history() -> Iterator[None]:
    """Line editing, and the lines typed before (kept with mode 0600: they may be private)."""
    try:
        import readline
    except ImportError:  # a Python built without it; input() works all the same
        yield
        return
    from sage_prefect.common.paths import state_dir

    file = state_dir() / "chat_history"
    if file.is_file():
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.write_history_file(file)
