r"""From a real model to a quadratic: the scales of its blocks, measured.

A model with the loss :math:`f(w)`, the mean over its batches, has at one point :math:`w` and for each block b
of its parameters (one tensor a block, unless told otherwise)

.. math:: g_b = \nabla_b f(w), \qquad H_b = \nabla_b^2 f(w), \qquad
          H_D = \mathrm{blkdiag}(H_1, \dots, H_B),

and all that the theory of block-diagonal quadratics asks for: :math:`\|g_b\|`, :math:`\|H_b\|_2`, the
spectrum of :math:`H_b`, the noise of the gradient, and how much of the Hessian :math:`H_D` leaves out.

    model, loss, batches -> measure -> BlockStatistics -> replay -> BlockQuadratic

==================  ==========================================================  ===========
module              purpose                                                     needs torch
==================  ==========================================================  ===========
``statistics``      `BlockStatistics`: the result; saves, loads, draws itself   no
``spectrum``        Hessian-vector products, extremes, Lanczos densities        yes
``measure``         `measure`: any model, any loss, any blocks                  yes
``pretrained``      Hugging Face models, and one with its weights in a package  yes
``data, models``    small Transformers, a CNN and an MLP, with data at hand     yes
``train``           real training at the best constant learning rate            yes
``replay``          the measured blocks as a quadratic, and what it predicts    no
``study``           what ``make bridge`` measures, and how it is judged         to measure
==================  ==========================================================  ===========

Names are loaded when first used: nothing here imports torch until it is needed.
"""

from __future__ import annotations

from quadlab._lazy import lazy

# module -> its public names
_MODULES = {
    "statistics": ("BlockStatistics",),
    "measure": ("measure",),
    "models": ("Workload", "workload"),
    "pretrained": ("hugging_face", "minilm"),
    "train": ("SignSGD", "Training", "TrainingRun", "train", "train_at"),
    "replay": ("Prediction", "predict", "replay"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [*_MODULE_OF]

__getattr__ = lazy(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
