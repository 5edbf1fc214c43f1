"""The index: immutable generations on disk, and lookups in them.

`writing` makes a generation, `generation` opens it, `lookup` answers queries from it, `publishing` says which one is
served. numpy and numba only; the bytes are described in `docs/index-format.md`.
"""
