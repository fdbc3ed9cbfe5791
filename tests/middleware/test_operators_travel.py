"""Operators reach workers as class and parameters, and importing them is cheap."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from sage_prefect.kernel.operator import Operator
from sage_prefect.middleware import (
    Chunk,
    Embed,
    Generate,
    Print,
    Prompt,
    PythonDocs,
    ReadFiles,
    ReadHttp,
    ReadSql,
    Retrieve,
    WriteCsv,
    WriteJsonl,
    WriteParquet,
    WriteSql,
    WriteVectors,
)

OPERATORS: list[Operator] = [
    Chunk(64, 8, column="body"),
    Embed("m", column="q", into="v", batch_size=8),
    Generate("m", into="reply", system="s"),
    Print(["a"], limit=3),
    Prompt("{a} {b}", max_tokens=9, trim="a"),
    PythonDocs(["json"]),
    ReadFiles(["a/*.md", "b"], rows_per_part=3),
    ReadHttp("http://x/y", "a.b", page_param="page"),
    ReadSql("SELECT 1", "os.environ/DB", split_by="id"),
    Retrieve("docs", k=2, into="p"),
    WriteCsv("x"),
    WriteJsonl("x"),
    WriteParquet("x"),
    WriteSql("x", "os.environ/DB", mode="append"),
    WriteVectors("x", id_column=None),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_pickled_and_back(operator: Operator) -> None:
    again = pickle.loads(pickle.dumps(operator))
    assert type(again) is type(operator)
    assert dict(again.params) == dict(operator.params)
    assert (again.reads, again.adds, again.batch_size) == (
        operator.reads,
        operator.adds,
        operator.batch_size,
    )
    assert again.content_key() == operator.content_key()


def test_the_package_loads_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, sage_prefect.middleware\n"
        "assert 'pyarrow' not in sys.modules\n"
        "from sage_prefect.middleware import Chunk, Embed, ReadFiles\n"
        "for name in ('httpx', 'bs4', 'pypdf', 'torch', 'prefect', 'dask'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
