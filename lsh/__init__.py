"""Embeddings -> terms -> posting lists -> candidates -> clusters: the kernels, in numpy and numba.

Arrays in, arrays out: no Spark, no network, no TensorFlow. `batch_jobs` and `service` wire these kernels together.
"""

from lsh.numpy_dispatch import avoid_slow_sorting

avoid_slow_sorting()  # before anything loads numpy

from lsh.kernel_cache import use_own_folder  # noqa: E402

use_own_folder()  # before the first kernel is declared
