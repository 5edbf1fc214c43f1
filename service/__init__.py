"""The gRPC lookup service: it knows whether an image was seen before, and which one is the original.

`engine` answers from the hash tables of a generation and the `live_index` over later uploads, which `upload_log`
keeps; it knows no network. `server` puts gRPC around it, `client` talks to it.
"""
