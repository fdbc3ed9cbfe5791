"""The example pipelines and their questions."""

from __future__ import annotations

import json
import sys
from importlib.resources import files

import pytest

from sage_prefect.common.errors import EmptySourceError
from sage_prefect.orchestration.examples.rag import QUESTIONS, answer_pipeline, ingest_pipeline


@pytest.fixture(scope="module")
def questions():
    with open(QUESTIONS) as file:
        return [json.loads(line) for line in file]


def test_there_are_enough_questions_each_once(questions):
    assert len(questions) >= 24
    assert len({item["question"] for item in questions}) == len(questions)
    assert all(item["question"].endswith("?") and item["expected"] for item in questions)


def test_questions_are_package_data():
    assert (files("sage_prefect.orchestration.examples") / "questions.jsonl").is_file()


def test_expected_sources_are_documented_by_this_python(questions):
    from sage_prefect.middleware import PythonDocs

    wanted = {source for item in questions for source in item["expected"]}
    modules = {name.partition(".")[0] for name in wanted} & sys.stdlib_module_names
    modules = sorted((modules - {"os"}) | {"os.path"})
    documented = set()
    source = PythonDocs(modules)
    for part in source.parts():
        for batch in source.read(part):
            documented |= set(batch.column("source").to_pylist())
    unanswerable = [i["question"] for i in questions if not set(i["expected"]) & documented]
    assert not unanswerable


def test_ingest_is_one_stage_on_the_cpu():
    (stage,) = ingest_pipeline().plan().stages
    assert stage.name == "python-docs+chunk+embed+write-vectors"
    assert str(stage.resources) == "cpu=1"


def test_answer_embeds_on_the_cpu_and_generates_on_the_gpu():
    first, second = answer_pipeline().plan().stages
    assert first.name == "read-files+embed+retrieve+prompt"
    assert second.name == "generate+write-parquet"
    assert (str(first.resources), str(second.resources)) == ("cpu=1", "gpu=1")


def test_own_documents_and_questions(tmp_path):
    with pytest.raises(EmptySourceError):
        ingest_pipeline([str(tmp_path / "none")]).plan()
    (tmp_path / "a.md").write_text("# A\n\ntext")
    assert "read-files" in ingest_pipeline([str(tmp_path)], "mine").plan().stages[0].name
    plan = answer_pipeline([{"question": "Why?"}], "mine").plan()
    assert len(plan.partitions) == 1


def test_models_come_from_the_settings(monkeypatch):
    monkeypatch.setenv("SAGE_ENGINES__LLM", "big")
    monkeypatch.setenv("SAGE_ENGINES__EMBEDDING", "small")
    steps = [step for stage in answer_pipeline().plan().stages for step in stage.steps]
    models = {step.operator.name: step.operator.params.get("model") for step in steps}
    assert (models["embed"], models["generate"]) == ("small", "big")
