"""Embeddings -> terms -> posting lists -> candidates -> clusters: the kernels, in numpy and numba.

Arrays in, arrays out: no Spark, no network, no TensorFlow. `batch_jobs` and `service` wire these kernels together.
"""
