"""The architecture: imports run downward only, and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quadlab

PACKAGE = Path(quadlab.__file__).parent
PUBLIC_MODULE = quadlab._MODULE_OF

# A module imports only names to its left. Kernels import nothing, so anything may use them.
# fmt: off
ORDER = [
    "kernels", "_lazy", "_arrays", "_files", "_progress", "noise", "spectra", "bases",
    "problem", "cases", "curvature", "heterogeneity", "stopping", "steps", "methods", "closed_form", "run",
    "batch", "engine", "solve", "bounds", "expectation", "stability", "compare", "falsify", "sweep", "bridge",
    "testing", "figures", "cli", "__main__",
]
# fmt: on

# Heavy libraries, and the only parts of the package that may import them, at the top or inside a function.
HOME_OF = {
    "torch": {"bridge"},
    "sklearn": {"bridge"},
    "transformers": {"bridge"},
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "matplotlib": {"bridge", "figures"},
    "dask": {"sweep"},
    "pandas": {"sweep"},
}


def part(module: str) -> str:
    """The entry of ORDER a module belongs to: ``quadlab.bounds.gd`` -> ``bounds``."""
    return module.split(".")[1] if "." in module else module


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """(line, imported module) of every import statement, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            names = [alias.name for alias in node.names]
            found += [(node.lineno, f"{base}.{name}" if base == "quadlab" else base) for name in names]
    return found


def faults(source: str, module: str, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one file, a line each."""
    here = part(module)
    if here not in ORDER:
        return [f"{module}: has no place in the order of imports"]
    wrong = []
    for line, target in imports(source, module, is_package):
        where = f"{module}:{line}"
        top = target.split(".")[0]
        if top in HOME_OF and here not in HOME_OF[top]:
            wrong.append(f"{where}: {top} belongs to {sorted(HOME_OF[top])} alone")
        if top != "quadlab" or target in ("quadlab", "quadlab.__version__"):
            continue
        there = part(target)
        if there not in ORDER:
            wrong.append(f"{where}: {target} has no place in the order of imports")
        elif ORDER.index(there) > ORDER.index(here):
            wrong.append(f"{where}: imports {there}, which stands above {here}")
    return wrong


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=[module_name(path) for path in FILES])
def test_imports_run_downward(path):
    assert faults(path.read_text(), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("quadlab.problem", "from quadlab.solve import solve"),
        ("quadlab.problem", "def f():\n    from quadlab import compare"),
        ("quadlab.problem", "import quadlab.cli as c"),
        ("quadlab.kernels.lanes", "from ..problem import BlockQuadratic"),
        ("quadlab.kernels.lanes", "from quadlab.spectra import Listed"),
        ("quadlab.bounds.gd", "from ..compare import compare"),
        ("quadlab.compare", "def f():\n    import torch.nn"),
        ("quadlab.solve", "from matplotlib import pyplot"),
        ("quadlab.solve", "from quadlab import GD"),
        ("quadlab.novelty", ""),
    ],
)
def test_an_upward_import_is_caught(module, source):
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "quadlab.solve",
            "import scipy\nfrom quadlab.kernels.lanes import x\nfrom quadlab.run import Y",
        ),
        ("quadlab.bounds.gd", "from quadlab.bounds.registry import bound\nfrom .lemma import y"),
        ("quadlab.curvature", "def f():\n    from quadlab.kernels import m_star"),
    ],
)
def test_a_downward_import_passes(module, source):
    assert faults(source, module) == []


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_light():
    out = python(
        "import sys, time; start = time.perf_counter(); import quadlab; took = time.perf_counter() - start\n"
        "heavy = ['torch', 'matplotlib.pyplot', 'dask', 'pandas', 'numba', 'scipy']\n"
        "print(f'{1e3 * took:.1f}', *[name for name in heavy if name in sys.modules])"
    )
    milliseconds, *loaded = out.split()
    print(f"import quadlab: {milliseconds} ms")
    assert loaded == []


def test_what_was_measured_needs_no_torch():
    out = python(
        "import sys, quadlab.bridge\n"
        "quadlab.bridge.BlockStatistics, quadlab.bridge.replay, quadlab.bridge.predict\n"
        "print(*[name for name in ('torch', 'sklearn', 'transformers') if name in sys.modules])"
    )
    assert out.split() == []


def test_stub_lists_the_public_names():
    found = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)
            found |= {alias.name: node.module for alias in node.names}
    assert found == PUBLIC_MODULE


def test_public_names_resolve_and_survive_their_modules():
    """``quadlab.solve`` is the function, whether or not the module of that name was imported first."""
    out = python(
        "import importlib, inspect, quadlab\n"
        "for module in sorted(set(quadlab._MODULE_OF.values())): importlib.import_module(module)\n"
        "print(*[name for name in quadlab.__all__ if inspect.ismodule(getattr(quadlab, name))])\n"
        "import quadlab.solve\n"
        "from quadlab.solve import solve_many\n"
        "assert callable(quadlab.solve) and quadlab.solve_many is solve_many and 'solve' in dir(quadlab)\n"
    )
    assert out.split() == []


def test_public_names_of_the_bridge_survive_their_modules():
    for extra in ("torch", "transformers"):
        pytest.importorskip(extra)
    out = python(
        "import importlib, inspect, quadlab.bridge as bridge\n"
        "for module in sorted(set(bridge._MODULE_OF.values())): importlib.import_module(module)\n"
        "print(*[name for name in bridge.__all__ if inspect.ismodule(getattr(bridge, name))])\n"
        "from quadlab.bridge import measure, replay\n"
        "assert callable(measure) and callable(replay) and 'measure' in dir(bridge)\n"
    )
    assert out.split() == []


def test_an_unknown_name_is_an_attribute_error():
    import quadlab.bridge

    for package in (quadlab, quadlab.bridge):
        with pytest.raises(AttributeError, match="nonsense"):
            package.nonsense  # noqa: B018
