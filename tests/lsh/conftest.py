"""Settings of the property tests: the first call of a kernel compiles it, which no deadline should count."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kernels", deadline=None)
settings.load_profile("kernels")
