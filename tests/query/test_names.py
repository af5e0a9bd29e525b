"""The names of the package, which are imported when they are first used."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import subprocess
import sys

import pytest

import paramdex
import paramdex.cli


def test_every_name_is_there() -> None:
    assert {*paramdex.__all__, "__version__", "atlas", "result"} <= {*dir(paramdex)}
    for name in paramdex.__all__:
        assert callable(getattr(paramdex, name))
    assert inspect.isclass(paramdex.Atlas)
    assert paramdex.atlas.open is paramdex.open
    assert paramdex.__version__


def test_no_other_name_is() -> None:
    with pytest.raises(AttributeError, match="module 'paramdex' has no attribute 'nothing'"):
        _ = paramdex.nothing
    with pytest.raises(AttributeError, match=r"module 'paramdex\.cli' has no attribute 'nothing'"):
        _ = paramdex.cli.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from paramdex import nothing  # noqa: F401


def test_all_at_once_help_and_pickles() -> None:
    found: dict[str, object] = {}
    exec("from paramdex import *", found)
    assert {*paramdex.__all__} <= {*found}
    text = pydoc.plain(pydoc.render_doc(paramdex))
    assert "class Atlas" in text
    assert "class TokenFilter" in text
    chosen = paramdex.TokenFilter(ascii=True)
    assert pickle.loads(pickle.dumps(chosen)) == chosen


def test_importing_the_package_or_showing_help_loads_nothing_slow() -> None:
    slow = "{'numpy', 'duckdb', 'pyarrow', 'rich'} & {*sys.modules}"
    for first in (
        "import paramdex",
        "from paramdex.cli import main",
        "from paramdex.cli import main; sys.argv[1:] = ['show', '--help']\ntry: main()\nexcept SystemExit: pass",
    ):
        command = [sys.executable, "-c", f"import sys\n{first}\nprint({slow})"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "set()", first
