from __future__ import annotations

import math
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from sage_prefect.libs.extract.python_object import documented
from sage_prefect.libs.extract.python_source import outline, parse

SOURCE = textwrap.dedent(
    '''
    """The module."""
    from _private import *
    from .inner import thing as other
    __all__ = ["func", "Class"] + other.__all__
    __all__ += ["late"]

    def func(a, b=1, *args, c, **kw):
        """Does it."""
        def hidden():
            """No."""

    def _private():
        """No."""

    class Class(Base):
        """A class."""
        def __init__(self, size=3):
            """Make it."""
        def method(self, x, /, y=2):
            """Method."""
        @staticmethod
        def static(x):
            """Static."""
        @property
        def prop(self):
            """Property."""
        @prop.setter
        def prop(self, value):
            """Setter."""

    if True:
        def under_if():
            """Found."""
    try:
        pass
    except ImportError:
        async def under_except():
            """Found too."""
    def undocumented():
        pass
    '''
)


def test_outline() -> None:
    found = outline(SOURCE)
    assert [(d.name, d.kind, d.signature) for d in found.documented] == [
        ("", "module", ""),
        ("func", "function", "func(a, b=1, *args, c, **kw)"),
        ("Class", "class", "Class(size=3)"),
        ("Class.method", "method", "method(x, /, y=2)"),
        ("Class.static", "method", "static(x)"),
        ("Class.prop", "method", "prop"),
        ("under_if", "function", "under_if()"),
        ("under_except", "function", "under_except()"),
    ]
    assert found.documented[2].doc == "A class.\n\nMake it."
    assert found.exported == frozenset({"func", "Class", "late"})
    assert found.imports == {"_private": {"*": "*"}, ".inner": {"thing": "other"}}


def test_methods_of_a_hidden_instance() -> None:
    source = textwrap.dedent(
        '''
        class Random:
            def shuffle(self, x):
                """Shuffle it."""
        _inst = Random()
        shuffle = _inst.shuffle
        mix = _inst.shuffle
        other = unknown.shuffle
        '''
    )
    found = [(d.name, d.kind, d.signature) for d in outline(source).documented]
    assert found[1:] == [
        ("shuffle", "function", "shuffle(x)"),
        ("mix", "function", "mix(x)"),
    ]


def test_gives() -> None:
    found = outline(SOURCE)
    assert found.gives("func", {"*"})
    assert found.gives("Class.method", {"Class"})
    assert not found.gives("under_if", {"*"})
    assert outline("x = 1").gives("anything", {"*"})
    assert not outline("x = 1").gives("_hidden", {"*"})


def test_broken_source() -> None:
    with pytest.raises(SyntaxError):
        outline("def (")


def test_compiled_modules() -> None:
    entries = {entry.name: entry for entry in documented(math)}
    assert entries[""].kind == "module"
    assert entries["sqrt"].signature == "sqrt(x, /)"
    assert "square root" in entries["sqrt"].doc


def test_compiled_classes() -> None:
    import builtins

    entries = {entry.name: entry for entry in documented(builtins)}
    assert entries["str.split"].signature == "split(sep=None, maxsplit=-1)"
    assert entries["int.bit_length"].signature == "bit_length()"
    assert not any(name.rpartition(".")[2].startswith("_") for name in entries)


def test_threads_may_parse_at_once() -> None:
    """CPython 3.11 raises SystemError when two threads build syntax trees at the same time."""
    source = "\n".join(f"def f{n}(a, b=[1, (2, 3)]):\n    return a + b[{n}]" for n in range(400))
    with ThreadPoolExecutor(4) as threads:
        trees = list(threads.map(parse, [source] * 24))
    assert {len(tree.body) for tree in trees} == {400}
