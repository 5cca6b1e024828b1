r"""A block-diagonal quadratic testbed for optimizers of deep learning.

The objective is :math:`f(w) = \tfrac12 (w - w^*)^\top H (w - w^*)` with
:math:`H = \mathrm{blkdiag}(H_1, \dots, H_B)`: everything about its blocks is set directly, the optimizers
run on it, and their measured iteration counts are compared with the bounds proven for them.

Names are loaded when first used, so that importing the package costs a few milliseconds.

Some functions share the name of their module, such as :func:`solve`. The attribute of the package is then
always the function; ``from quadlab.solve import ...`` reaches the module.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# module -> its public names; __init__.pyi says the same to type checkers, and a test compares the two
_MODULES = {
    "spectra": ("Spectrum", "Listed", "TwoPoint", "LogUniform", "PowerLaw", "MarchenkoPastur", "Density"),
    "bases": ("Rotation", "Householder"),
    "problem": ("BlockQuadratic", "load"),
    "cases": ("case", "cases"),
    "curvature": ("Curvature", "curvature"),
    "heterogeneity": (
        "weighted_hessian_complexity",
        "gradient_weighted",
        "parameter_weighted",
        "gradient_heterogeneity",
        "hessian_heterogeneity",
        "jensen_shannon",
        "mean_jensen_shannon",
    ),
    "stopping": ("GradientNorm", "Gap", "default_stop"),
    "steps": ("Schedule",),
    "methods": (
        "GD",
        "SignSGD",
        "NormalizedGD",
        "Adam",
        "AdamW",
        "FrozenAdam",
        "RMSProp",
        "elementwise",
        "arraywise",
    ),
    "run": ("Run", "Status", "Trace"),
    "solve": ("solve", "solve_many", "best_learning_rate"),
    "bounds": ("bound", "bounds"),
    "compare": ("compare",),
    "sweep": ("sweep",),
    "falsify": ("falsify",),
    "figures.plot": ("plot",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module at first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The import system binds a submodule to its package; a public function of that name stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
