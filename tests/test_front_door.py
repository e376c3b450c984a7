"The names of `import scalai_nb as sn`: lazy, complete, and helpful when one does not exist."
import subprocess
import sys

import pytest

import scalai_nb as sn

HEAVY = ("numpy", "pandas", "pyarrow", "torch", "dask", "distributed", "mlflow", "numba", "pydantic", "ipywidgets")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_import_loads_nothing():
    code = (
        f"import sys, scalai_nb; print([m for m in {HEAVY} if m in sys.modules], [m for m in sys.modules if"
        " m.startswith('scalai_nb.')])"
    )
    assert python(code).strip() == "[] []"


def test_a_profile_loads_no_torch_and_no_dask_client():
    code = ("import sys, pandas as pd, scalai_nb as sn; sn.profile(pd.DataFrame({'a': [1, 2]}));"
            "print([m for m in ('torch', 'distributed', 'mlflow', 'ipywidgets') if m in sys.modules])")
    assert python(code).strip() == "[]"


@pytest.mark.parametrize("name", [n for n in sn.__all__ if n != "__version__"])
def test_every_name_is_there_and_has_a_docstring(name):
    value = getattr(sn, name)
    assert (value.__doc__ or "").strip(), f"sn.{name} has no docstring"
    assert value.__name__ == name


def test_completion_knows_every_name():
    from IPython.core.completer import IPCompleter, provisionalcompleter
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    shell.user_ns["sn"] = sn
    with provisionalcompleter():
        completer = IPCompleter(shell, namespace=shell.user_ns, use_jedi=False)
        found = {c.text.removeprefix(".") for c in completer.completions("sn.", 3)}
    assert set(sn._MODULES) <= found


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="has no Tabel; did you mean Table?"): sn.Tabel
    with pytest.raises(ImportError):
        from scalai_nb import proflie  # noqa: F401
    assert not hasattr(sn, "__wrapped__")
