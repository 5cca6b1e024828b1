"""Integer codes shared by the compiled kernels and the Python around them.

The kernels see arrays and integers only. Every code has its one definition here; Numba reads these
module globals as compile-time constants.

Three index spaces hold the numbers of one run:

* ``P_*``: the parameters of a run (constant while it runs);
* ``Q_*``: the quantities of the current iteration (recomputed at each one, what a trace records);
* ``A_*``: accumulators over the trajectory (suprema, sums), and the little scalar state of a run.
"""

from __future__ import annotations

# Storage of a block. SYMMETRIC is a dense one as half of it, FOURFOLD one of four side by side: dense.py.
DENSE, DIAGONAL, HOUSEHOLDER, SYMMETRIC, FOURFOLD = range(5)

# Methods. FROZEN_ADAM keeps the second moment of the first gradient.
GD, GD_MOMENTUM, GD_NESTEROV, SIGN, SIGNUM, NORMALIZED, ADAM, FROZEN_ADAM, USER = range(9)

# Step rules.
CONSTANT, SCHEDULE, LEMMA, M_STAR, LINE_SEARCH = range(5)

# Paths of a single run: all iterations alike, or those without an event by tiny.py or stream.py.
GENERAL, TINY, STREAM = range(3)

# Quantities that can stop a run (stopping.py uses these codes).
STOP_L1, STOP_L2, STOP_LINF, STOP_GAP = range(4)

# Outcomes of a kernel call for one run.
RUNNING, CONVERGED, MAX_ITERATIONS, DIVERGED, NOT_DESCENT = range(5)

# Parameters of a run.
(
    P_RATE,  # constant learning rate
    P_BETA1,  # momentum, beta1
    P_BETA2,
    P_EPSILON,
    P_DECAY,  # decoupled weight decay
    P_TOLERANCE,
    P_RELATIVE,  # 1.0: the tolerance is a fraction of the measured quantity at the start
    P_M,  # the constant M of the step ||g||_1 / M
    P_BIAS,  # 1.0: bias correction
    P_TAIL_GAP,  # first iteration of the tail supremum of f - f*
    P_TAIL_DISPLACEMENT,
    P_USER,  # first of the hyperparameters of a user's method
) = range(12)
MAX_USER_PARAMETERS = 12
N_PARAMETERS = P_USER + MAX_USER_PARAMETERS

# Quantities of the current iteration.
(
    Q_GAP,
    Q_L1,
    Q_SQUARE,  # ||g||_2^2
    Q_LINF,
    Q_CURVATURE_G,  # sum_b ||g_b||^2 ||H_b||, the numerator of Lambda_G
    Q_LAMBDA_G,
    Q_STEP,
    Q_DESCENT,  # g.d
    Q_D_SQUARE,  # ||d||_2^2
    Q_CURVATURE_D,  # sum_b ||d_b||^2 ||H_b|| = Lambda(d) ||d||^2
    Q_DHD,  # d^T H d
    Q_COS,  # cos(d, sign g)
    Q_DENOMINATOR,  # ||sqrt(vhat) + epsilon||_1
    Q_PRECONDITIONED_MAX,  # max_b ||H_b|| / min_{i in b} D_i
    Q_PRECONDITIONED_MIN,  # min_b mu_b / max_{i in b} D_i
    Q_DISPLACEMENT,  # max |x_i| over H_ii > 0
    Q_SOFT,  # share of coordinates with |d_i| in [1/2, 2]
) = range(17)
N_QUANTITIES = 17

# What to compute at each iteration, beside what the stopping test and the step need.
WANT_GAP = 1 << 0
WANT_L1 = 1 << 1
WANT_SQUARE = 1 << 2
WANT_LINF = 1 << 3
WANT_LAMBDA_G = 1 << 4
WANT_DIRECTION = 1 << 5
WANT_DHD = 1 << 6
WANT_COS = 1 << 7
WANT_DENOMINATOR = 1 << 8
WANT_DISPLACEMENT = 1 << 9
WANT_PEAK = 1 << 10  # max_t |g_i| of every coordinate
WANT_AVERAGE = 1 << 11  # averages weighted by the step

# What is seldom wanted, or costs little beside the call, is behind one call each.
WANT_GRADIENT = WANT_GAP | WANT_LAMBDA_G | WANT_LINF | WANT_DISPLACEMENT
WANT_TRANSITION = WANT_GAP | WANT_DISPLACEMENT
WANT_ALONG = WANT_DIRECTION | WANT_COS
WANT_STEP = WANT_GAP | WANT_LAMBDA_G | WANT_DIRECTION | WANT_DHD | WANT_COS | WANT_DENOMINATOR
WANT_STEP |= WANT_PEAK | WANT_AVERAGE

# Accumulators.
(
    A_SUP_LAMBDA_G,
    A_SUM_INVERSE_LAMBDA_G,
    A_FINAL_LAMBDA_G,
    A_SUP_STEP_LAMBDA_G,
    A_PREVIOUS_GAP,
    A_MIN_GAP_RATIO,
    A_MAX_GAP_RATIO,
    A_TAIL_GAP,
    A_TAIL_DISPLACEMENT,
    A_MIN_DESCENT,
    A_SUP_LAMBDA_D,
    A_SUM_INVERSE_LAMBDA_D,
    A_SUP_LEMMA_L1,
    A_SUP_LEMMA_L2,
    A_SUP_CURVATURE,
    A_SUP_DENOMINATOR,
    A_SUP_PRECONDITIONED,
    A_INF_PRECONDITIONED,
    A_MIN_COS,
    A_SUM_COS,
    A_SUM_SOFT,
    A_POWER1,  # beta1^t
    A_POWER2,  # beta2^t
    A_SUM_STEP,  # sum eta_t
    A_SUM_STEP_SQUARE,  # sum eta_t ||g_t||_2^2
    A_SUM_STEP_L1,  # sum eta_t ||g_t||_1
) = range(26)
N_ACCUMULATORS = 26
# Accumulators that begin at +infinity (minima), and at one (powers); the others begin at zero.
STARTS_AT_INFINITY = (A_MIN_GAP_RATIO, A_MIN_DESCENT, A_INF_PRECONDITIONED, A_MIN_COS)
STARTS_AT_ONE = (A_POWER1, A_POWER2)

# Places in the array that the threads on one run share; those they spin on, each in a cache line of its own.
T_ARRIVED, T_GENERATION, T_FIRST, T_LIMIT = 0, 16, 32, 33
TEAM_SIZE = 48
# The limit that ends their work.
LEAVE = -1

# Fixed order of every sum over coordinates: chunks of CHUNK coordinates, each in STRIPES stripes.
CHUNK = 4096
STRIPES = 8

# Magnitudes under this become zero when written (subnormal numbers slow a run tenfold).
FLUSH = 1e-290
