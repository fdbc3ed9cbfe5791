"""Settings: precedence, sources, and errors that name the key, its value and where it came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import SettingsError
from sage_prefect.common.settings import (
    NOT_SETTINGS,
    Settings,
    load_settings,
    load_with_sources,
    settings_files,
    variable_of,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Loads from a user file, a project file, an environment and overrides."""

    def load(
        user: str | None = None,
        project: str | None = None,
        environ: dict[str, str] | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> tuple[Settings, dict[tuple[str, ...], str]]:
        user_file, project_file = tmp_path / "user.yaml", tmp_path / "project.yaml"
        for file, content in ((user_file, user), (project_file, project)):
            if content is not None:
                file.write_text(content)
        return load_with_sources(
            overrides, environ=environ or {}, user_file=user_file, project_file=project_file
        )

    return load


def test_defaults_need_no_file(files: Any) -> None:
    settings, sources = files()
    assert settings == Settings()
    assert sources == {}


def test_each_source_beats_the_ones_below(files: Any, tmp_path: Path) -> None:
    user = "gateway: {port: 1001, host: 10.0.0.1, policy: user}\nlog_level: ERROR\n"
    project = "gateway: {port: 1002, host: 10.0.0.2}\n"
    environ = {"SAGE_GATEWAY__PORT": "1003", "SAGE_ENGINES__LLM_SLOTS": "9"}
    settings, sources = files(user, project, environ, {"engines": {"llm_slots": 12}})
    assert settings.gateway.port == 1003
    assert settings.gateway.host == "10.0.0.2"
    assert settings.gateway.policy == "user"
    assert settings.log_level == "ERROR"
    assert settings.engines.llm_slots == 12
    assert sources["gateway", "port"] == "environment"
    assert sources["gateway", "host"] == str(tmp_path / "project.yaml")
    assert sources["gateway", "policy"] == str(tmp_path / "user.yaml")
    assert sources["engines", "llm_slots"] == "command line"
    assert ("prefect", "port") not in sources


def test_command_line_none_and_empty_variables_say_nothing(files: Any) -> None:
    settings, sources = files(
        "gateway: {port: 1001}", None, {"SAGE_GATEWAY__PORT": ""}, {"gateway": {"port": None}}
    )
    assert settings.gateway.port == 1001
    assert sources["gateway", "port"].endswith("user.yaml")


def test_null_in_a_file_goes_back_to_none(files: Any) -> None:
    assert files("gateway: {port: 1001}", "gateway: {port: null}")[0].gateway.port is None


@pytest.mark.parametrize("content", ["", "\n", "# nothing\n", "gateway:\n", "gateway: {}\n"])
def test_empty_files_and_sections(files: Any, content: str) -> None:
    assert files(content)[0] == Settings()
    assert files("gateway: {port: 1001}", content)[0].gateway.port == 1001


def test_paths_expand_the_home(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings, _ = files("gateway: {config: ~/gateway.yaml}\ncluster: {config: x.yaml}")
    assert settings.gateway.config == Path("/home/someone/gateway.yaml")
    assert settings.cluster.config == Path("x.yaml")


@pytest.mark.parametrize(
    ("user", "environ", "overrides", "expected"),
    [
        ("gatewy: {port: 1}", {}, None, r"'gatewy' \(.*user.yaml\).*Did you mean 'gateway'\?"),
        ("gateway: {prt: 1}", {}, None, r"'gateway.prt'.*Did you mean 'gateway.port'\?"),
        ("1: 2", {}, None, r"unknown setting '1'.*Known here: cluster, engines"),
        (
            None,
            {"SAGE_GATWAY__PORT": "1"},
            None,
            r"'SAGE_GATWAY' \(environment\).*Did you mean 'SAGE_GATEWAY'\?",
        ),
        (None, {"SAGE_LOG_LEVL": "INFO"}, None, r"Did you mean 'SAGE_LOG_LEVEL'\?"),
        (None, {"SAGE_PORT_GATEWY": "1"}, None, r"Did you mean 'SAGE_PORT_GATEWAY'\?"),
        (None, {}, {"gateway": {"hosts": "x"}}, r"'gateway.hosts' \(command line\)"),
    ],
)
def test_an_unknown_key_suggests_the_near_one(
    files: Any,
    user: str | None,
    environ: dict[str, str],
    overrides: dict[str, Any] | None,
    expected: str,
) -> None:
    with pytest.raises(SettingsError, match=expected):
        files(user, None, environ, overrides)


@pytest.mark.parametrize(
    ("user", "environ", "expected"),
    [
        ("gateway: {port: 70000}", {}, r"gateway\.port=70000 \(.*user\.yaml\): .*65535"),
        (None, {"SAGE_GATEWAY__PORT": "abc"}, r"gateway\.port='abc' \(environment\): .*integer"),
        ("gateway: 5", {}, r"gateway=5 \(.*user\.yaml\)"),
        ("log_level: loud", {}, r"log_level='loud'.*'DEBUG'"),
        (None, {"SAGE_GATEWAY__PORT__X": "1"}, r"gateway\.port=\{'x': '1'\}"),
        (None, {"SAGE_ENGINES__START_TIMEOUT_S": "inf"}, r"start_timeout_s.*finite"),
        (None, {"SAGE_ENGINES__START_TIMEOUT_S": "nan"}, r"start_timeout_s"),
    ],
)
def test_a_wrong_value_names_key_value_and_source(
    files: Any, user: str | None, environ: dict[str, str], expected: str
) -> None:
    with pytest.raises(SettingsError, match=expected):
        files(user, None, environ)


@pytest.mark.parametrize(
    "environ",
    [
        {"SAGE_GATEWAY": "x", "SAGE_GATEWAY__PORT": "1"},
        {"SAGE_GATEWAY__PORT": "1", "SAGE_GATEWAY": "x"},
    ],
)
def test_a_section_and_its_key_in_the_environment_contradict(
    files: Any, environ: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match="section"):
        files(environ=environ)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("- a\n- b", "holds a list, not a mapping"), ("a: [", "cannot read settings file")],
)
def test_a_broken_file_is_named(files: Any, content: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        files(content)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "user.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        load_settings(environ={}, user_file=file)


def test_sage_config_names_the_project_file(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    environ = {"SAGE_CONFIG": str(file)}
    with pytest.raises(SettingsError, match="is not a file"):
        load_settings(environ=environ)
    file.write_text("gateway: {port: 1234}")
    assert load_settings(environ=environ).gateway.port == 1234
    assert settings_files(environ)[1] == file


def test_default_files(sage_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (sage_home / "config").mkdir()
    (sage_home / "config" / "config.yaml").write_text("gateway: {port: 1, policy: user}")
    (tmp_path / "sage.yaml").write_text("gateway: {port: 2}")
    settings = load_settings()
    assert (settings.gateway.port, settings.gateway.policy) == (2, "user")


def test_other_variables_of_ours_are_no_settings() -> None:
    environ = dict.fromkeys(NOT_SETTINGS - {"SAGE_CONFIG"}, "8000")
    assert load_settings(environ={**environ, "PATH": "x"}) == Settings()


def test_every_variable_that_the_code_reads_is_known() -> None:
    """Else setting it would make every command fail with 'unknown setting'."""
    settings = set()
    for name, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        settings |= {variable_of((name, key)) for key in inner} or {variable_of((name,))}
    used = {
        (match, file.relative_to(ROOT))
        for folder in ("sage_prefect", "gateway", "blocks", "benchmarks", "native")
        for suffix in ("*.py", "*.cpp", "*.hpp")
        for file in (ROOT / folder).rglob(suffix)
        for match in re.findall(r"\"(SAGE_[A-Z0-9_]*[A-Z0-9])\"", file.read_text())
        if "tests" not in file.parts
    }
    assert {
        (name, str(file)) for name, file in used if name not in NOT_SETTINGS | settings
    } == set()


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=5) | st.none()))
def test_whatever_a_file_holds_the_answer_is_settings_or_a_settings_error(
    content: dict[str, Any],
) -> None:
    try:
        settings = load_settings(content, environ={}, project_file=Path("/nonexistent/sage.yaml"))
    except SettingsError:
        return
    assert isinstance(settings, Settings)
