"""Embeddings -> terms -> posting lists -> candidates -> clusters: the kernels, in numpy and numba.

Arrays in, arrays out: no Spark, no network, no TensorFlow. `batch_jobs` and `service` wire these kernels together.
"""

from lsh.kernel_cache import use_own_folder

use_own_folder()  # before the first kernel is declared
