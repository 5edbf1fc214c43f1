"""Generations in Redis: the arrays of the index cut into small pages, one string value each.

`url` names a store, `connection` talks to its servers, `keys` says where each page is, `pages` packs them, `reading`
fetches them. `loading` writes and reads whole generations, `generation` and `lookup` answer queries from them, and
`publishing` says which one is served. The bytes are described in `docs/redis-format.md`.
"""
