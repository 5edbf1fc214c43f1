"""The one door to Keras: importing it imports the backend, without the chatter of TensorFlow's start-up.

Every module of `embed` that builds or runs a network takes `keras`, `layers`, `ops` and `random` from here, and only
when it needs them: the import takes seconds.
"""

from __future__ import annotations

import logging
import os

from embed.chatter import chatter_held_back

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)
with chatter_held_back():
    import keras
    from keras import layers, ops, random

__all__ = ["keras", "layers", "ops", "random"]
