"""The documents that are made from the code: docs/cli.md and the tables of docs/configuration.md.

``python docs/generate.py --write`` makes them again, ``--check`` says whether they are current.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parent

# Variables that are no settings: what reads them, and what for.
VARIABLES = {
    "SAGE_HOME": "Folder for everything (config, data, state, cache) instead of the XDG folders.",
    "SAGE_CONFIG": "The project's settings file instead of `./sage.yaml`.",
    "SAGE_MASTER_KEY": "The gateway's master key instead of the generated key file.",
    "SAGE_API_KEY": "The key that the client sends; else the master key, when it can be read.",
    "SAGE_BASE_URL": "The gateway or engine that the client talks to, with `/v1`.",
    "SAGE_REQUEST_TIMEOUT": "Seconds that the client waits for an answer.",
    "SAGE_RESULTS_DIR": "Where `sage bench` writes results instead of `./results`.",
    "SAGE_VLLM_PYTHON": "Python of the environment that vLLM runs in, instead of the one that "
    "`./manage.sh vllm-env` builds.",
    "SAGE_COMPILED": "`0`: Python runs the sources of control plane and gateway although they are "
    "compiled; `1`, the default, prefers the compiled ones.",
    "SAGE_NATIVE_ISA": "Instruction set of the native kernels instead of the best one of this "
    "processor: `scalar`, `avx2` or `avx512`.",
    "SAGE_NATIVE_NO_AMX": "`1`: native kernels without AMX although the processor has it.",
    "SAGE_NATIVE_NO_VNNI": "`1`: native kernels without VNNI, and so without AMX, although the "
    "processor has it.",
    "SAGE_NATIVE_THREADS": "Threads of the native kernels instead of one per core.",
    "SAGE_SERVICE": "Set by the supervisor for its services: the service's name.",
    "SAGE_SUPERVISOR": "Set by the supervisor for its services: marks its own processes.",
}


# -- docs/cli.md --------------------------------------------------------------------------

# Commands are told apart by what they have, not by class: typer carries its own copy of click.
Command: TypeAlias = Any


def command_tree() -> Command:
    """The whole ``sage`` command, ``sage bench`` with its own commands."""
    from sage_bench.cli import app as bench
    from sage_prefect.cli.main import app

    tree: Command = typer.main.get_command(app)
    tree.commands["bench"] = typer.main.get_command(bench)
    return tree


def commands(command: Command, path: str = "sage") -> Iterator[tuple[str, Command]]:
    """Every command with its full name, groups before what is in them."""
    yield path, command
    if is_group(command):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], f"{path} {name}")


def is_group(command: Command) -> bool:
    """Whether ``command`` only holds other commands."""
    return hasattr(command, "commands")


def cli_document() -> str:
    """docs/cli.md."""
    lines = [
        "# Command line",
        "",
        "<!-- Made by `./manage.sh docs --write`. Do not edit. -->",
        "",
        "Exit codes: 0 fine, 1 failed (`error:` says what, `hint:` what to do), 2 wrong use,"
        " 130 interrupted.",
    ]
    tree = command_tree()
    lines += ["", "| command | |", "| --- | --- |"]
    for path, command in commands(tree):
        if not is_group(command):
            lines.append(f"| [`{path}`](#{path.replace(' ', '-')}) | {_first_sentence(command)} |")
    for path, command in commands(tree):
        lines += _command_section(path, command)
    return "\n".join(lines) + "\n"


def _command_section(path: str, command: Command) -> list[str]:
    # `sage` and its groups are headings; commands stand below them.
    level = "##" if is_group(command) or path.count(" ") == 1 else "###"
    lines = ["", f"{level} {path}", "", _help(command)]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    if not is_group(command):
        shown = " ".join(_argument(argument) for argument in arguments)
        usage = " ".join(part for part in (path, "[OPTIONS]" if options else "", shown) if part)
        lines += ["", f"    {usage}"]
    rows = [(f"`{_argument(a)}`", getattr(a, "help", None) or "", "") for a in arguments]
    rows += [
        (f"`{_option(o)}`", o.help or "", _default(o))
        for o in options
        if o.name not in ("help", "install_completion", "show_completion")
    ]
    if rows:
        lines += ["", "| | | default |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return lines


def _help(command: Command) -> str:
    text = (command.help or "").partition("\f")[0].strip()
    return re.sub(r"\s*\n\s*(?!\n)", " ", text)


def _first_sentence(command: Command) -> str:
    return _cell(re.split(r"(?<=[.!?])\s", _help(command), maxsplit=1)[0])


def _argument(argument: Any) -> str:
    name = (argument.metavar or argument.name or "").upper().strip("[]").removesuffix("...")
    name += "..." if argument.nargs != 1 else ""
    return name if argument.required else f"[{name}]"


def _option(option: Any) -> str:
    names = ", ".join(option.opts + option.secondary_opts)
    if option.is_flag:
        return names
    return f"{names} {option.metavar or _placeholder(option)}"


def _placeholder(option: Any) -> str:
    annotation: Any = option.type_descriptor.annotation
    while get_args(annotation):  # list[Path], int | None
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    names = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return f"{names.get(annotation, 'VALUE')}{' (may repeat)' if option.multiple else ''}"


def _default(option: Any) -> str:
    default = option.default
    if option.is_flag or default is None or callable(default) or default in ((), []):
        return ""
    return f"`{getattr(default, 'value', default)}`"


# -- docs/configuration.md ----------------------------------------------------------------


def settings_table() -> str:
    """All settings: key, kind, default, meaning, variable."""
    from sage_prefect.common.settings import Settings, variable_of

    lines = []
    for section, fields in _sections(Settings):
        title = section or "general"
        about = (Settings.model_fields[section].annotation.__doc__ or "") if section else ""
        lines += [f"### {title}", ""]
        lines += [about.strip(), ""] if about else []
        lines += [
            "| key | kind | default | meaning | variable |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, field in fields:
            path = (section, name) if section else (name,)
            default = "none" if field.default is None else f"`{field.default}`"
            cells = (
                f"`{'.'.join(path)}`",
                _kind(field),
                default,
                field.description or "",
                f"`{variable_of(path)}`",
            )
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, list[tuple[str, FieldInfo]]]]:
    plain = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, list(field.annotation.model_fields.items())
        else:
            plain.append((name, field))
    yield "", plain


def _kind(field: FieldInfo) -> str:
    kind: Any = field.annotation
    parts = [part for part in get_args(kind) if part is not type(None)]
    if "Literal" in str(kind):
        return ", ".join(f"`{choice}`" for choice in parts)
    if parts:
        kind = parts[0]
    name = "path" if "Path" in str(kind) else getattr(kind, "__name__", str(kind))
    limits = [
        f"{sign} {getattr(item, attribute):g}"
        for item in field.metadata
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(item, attribute, None) is not None
    ]
    return ", ".join(
        [{"int": "whole number", "float": "number", "str": "text"}.get(name, name), *limits]
    )


def ports_table() -> str:
    """SagePorts."""
    from sage_prefect.common.ports import SagePorts

    lines = ["| service | default | variable |", "| --- | --- | --- |"]
    for port in SagePorts:
        lines.append(
            f"| {port.name.lower().replace('_', ' ')} | {port.value} | `{port.variable}` |"
        )
    return "\n".join(lines)


def variables_table() -> str:
    """Variables that are no settings."""
    lines = ["| variable | |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{name}` | {VARIABLES[name]} |" for name in sorted(VARIABLES)])


def litellm_table() -> str:
    """Keys of LiteLLM's configuration."""
    from sage_gateway.litellm_keys import keys

    lines = ["| key | | instead |", "| --- | --- | --- |"]
    for key in keys():
        honoured = key.advice is None
        lines.append(
            f"| `{key.name}` | {'honoured' if honoured else 'reported'} | "
            f"{'' if honoured else _cell(key.advice or '')} |"
        )
    return "\n".join(lines)


SECTIONS = {
    "settings": settings_table,
    "litellm": litellm_table,
    "ports": ports_table,
    "variables": variables_table,
}


def configuration_document() -> str:
    """docs/configuration.md with its generated parts made again."""
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name, make in SECTIONS.items():
        begin, end = f"<!-- generated:{name}:begin -->", f"<!-- generated:{name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"docs/configuration.md lacks {begin} ... {end}.")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


# -- main ---------------------------------------------------------------------------------


def documents() -> dict[Path, str]:
    """Every generated document and what it should hold."""
    return {
        DOCS / "cli.md": cli_document(),
        DOCS / "configuration.md": configuration_document(),
    }


def main() -> int:
    """Write or check; exit code 1 when a document is not current."""
    parser = argparse.ArgumentParser(
        description="Make the generated documents again, or check them."
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--write", action="store_true")
    chosen.add_argument("--check", action="store_true")
    write = parser.parse_args().write
    stale = [
        (file, content)
        for file, content in documents().items()
        if not file.exists() or file.read_text(encoding="utf-8") != content
    ]
    for file, content in stale:
        if write:
            file.write_text(content, encoding="utf-8")
        print(
            f"docs/{file.name}: {'written' if write else 'not current: ./manage.sh docs --write'}"
        )
    return 0 if write or not stale else 1


if __name__ == "__main__":
    sys.exit(main())
