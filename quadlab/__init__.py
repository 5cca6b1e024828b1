r"""A block-diagonal quadratic testbed for optimizers of deep learning.

The objective is :math:`f(w) = \tfrac12 (w - w^*)^\top H (w - w^*)` with
:math:`H = \mathrm{blkdiag}(H_1, \dots, H_B)`: everything about its blocks is set directly, the optimizers
run on it, and their measured iteration counts are compared with the bounds proven for them.

Names are loaded when first used, so that importing the package costs a few milliseconds.

Some functions share the name of their module, such as :func:`solve`. The attribute of the package is then
always the function; ``from quadlab.solve import ...`` reaches the module.
"""

from __future__ import annotations

from quadlab._lazy import lazy

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
        "SteepestDescent",
        "Adam",
        "AdamW",
        "FrozenAdam",
        "RMSProp",
        "AdamMini",
        "elementwise",
        "arraywise",
    ),
    "run": ("Run", "Status", "Trace"),
    "solve": ("solve", "solve_many", "best_learning_rate"),
    "bounds": ("bound", "bounds"),
    "expectation": ("expectation",),
    "compare": ("compare",),
    "stability": ("stability",),
    "sweep": ("sweep",),
    "falsify": ("falsify",),
    "figures.plot": ("plot",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [*_MODULE_OF, "__version__"]
__getattr__ = lazy(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
