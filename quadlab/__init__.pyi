"""The public names, for type checkers and editors; ``__init__.py`` loads them when first used."""

from quadlab.bases import Householder as Householder
from quadlab.bases import Rotation as Rotation
from quadlab.bounds import bound as bound
from quadlab.bounds import bounds as bounds
from quadlab.cases import case as case
from quadlab.cases import cases as cases
from quadlab.compare import compare as compare
from quadlab.curvature import Curvature as Curvature
from quadlab.curvature import curvature as curvature
from quadlab.expectation import expectation as expectation
from quadlab.falsify import falsify as falsify
from quadlab.figures.plot import plot as plot
from quadlab.heterogeneity import gradient_heterogeneity as gradient_heterogeneity
from quadlab.heterogeneity import gradient_weighted as gradient_weighted
from quadlab.heterogeneity import hessian_heterogeneity as hessian_heterogeneity
from quadlab.heterogeneity import jensen_shannon as jensen_shannon
from quadlab.heterogeneity import mean_jensen_shannon as mean_jensen_shannon
from quadlab.heterogeneity import parameter_weighted as parameter_weighted
from quadlab.heterogeneity import weighted_hessian_complexity as weighted_hessian_complexity
from quadlab.methods import GD as GD
from quadlab.methods import Adam as Adam
from quadlab.methods import AdamMini as AdamMini
from quadlab.methods import AdamW as AdamW
from quadlab.methods import FrozenAdam as FrozenAdam
from quadlab.methods import NormalizedGD as NormalizedGD
from quadlab.methods import RMSProp as RMSProp
from quadlab.methods import SignSGD as SignSGD
from quadlab.methods import SteepestDescent as SteepestDescent
from quadlab.methods import arraywise as arraywise
from quadlab.methods import elementwise as elementwise
from quadlab.problem import BlockQuadratic as BlockQuadratic
from quadlab.problem import load as load
from quadlab.run import Run as Run
from quadlab.run import Status as Status
from quadlab.run import Trace as Trace
from quadlab.solve import best_learning_rate as best_learning_rate
from quadlab.solve import solve as solve
from quadlab.solve import solve_many as solve_many
from quadlab.spectra import Density as Density
from quadlab.spectra import Listed as Listed
from quadlab.spectra import LogUniform as LogUniform
from quadlab.spectra import MarchenkoPastur as MarchenkoPastur
from quadlab.spectra import PowerLaw as PowerLaw
from quadlab.spectra import Spectrum as Spectrum
from quadlab.spectra import TwoPoint as TwoPoint
from quadlab.stability import stability as stability
from quadlab.steps import Schedule as Schedule
from quadlab.stopping import Gap as Gap
from quadlab.stopping import GradientNorm as GradientNorm
from quadlab.stopping import default_stop as default_stop
from quadlab.sweep import sweep as sweep

__version__: str
__all__: list[str]
