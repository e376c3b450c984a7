"""Take a model from a notebook to production and keep it accurate there: `import scalai_nb as sn`.

Every name below is imported when it is first used, so that the import itself costs nothing.
"""

import os

# OpenMP's threads sleep while they wait, where nothing else is set: two jobs on two cores that spin instead cost 10 times
# the CPU and 20 times the time (LightGBM). It is read when torch, LightGBM or scikit-learn are first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

_MODULES = {  # name -> the module that defines it
    "Client": "serving.client",
    "Contract": "data.contract",
    "Frontier": "compression.frontier",
    "MLP": "training.models",
    "Prep": "data.prep",
    "Profile": "data.profile",
    "Registry": "training.registry",
    "Report": "monitor.drift",
    "Rows": "compression.benchmark",
    "Run": "training.run",
    "ScalaiError": "core.errors",
    "Settings": "core.settings",
    "Table": "data.table",
    "Workflow": "jobs.workflow",
    "cluster": "core.cluster",
    "compare": "monitor.drift",
    "compress": "compression.frontier",
    "fit": "training.fit",
    "ingest": "data.ingest",
    "profile": "data.profile",
    "read": "data.preview",
    "result": "jobs.result",
    "run": "jobs.engine",
    "score": "serving.score",
    "search": "training.search",
    "show": "view.show",
    "write": "data.write",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str):
    from importlib import import_module

    if name not in _MODULES:
        from difflib import get_close_matches

        near = get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(_MODULES)}"
        raise AttributeError(f"scalai_nb has no {name}; {hint}", name=name, obj=None)
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
