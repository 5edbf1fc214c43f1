"""Embeddings -> terms -> posting lists -> candidates -> clusters: the kernels, in numpy and numba.

Arrays in, arrays out: no Spark, no network, no TensorFlow. `batch_jobs` and `service` wire these kernels together.
"""

from lsh.lean_imports import import_without
from lsh.numpy_dispatch import avoid_slow_sorting

avoid_slow_sorting()  # before anything loads numpy
import_without("numba.np.arraymath", missing="scipy.linalg")

from lsh.kernel_cache import use_own_folder  # noqa: E402

use_own_folder()  # before the first kernel is declared
