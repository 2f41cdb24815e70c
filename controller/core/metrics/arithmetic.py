"""The functions of `controller.core.analysis` that the metrics call, imported when one is called.

Behind them is numpy, which takes 0.2 s to load. A plan or a rollout is read without it: `rolloutctl
status` computes nothing. Types alone are imported in each file, under `TYPE_CHECKING`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from controller.core.analysis.latency import margin_buckets, quantile_bucket, quantile_interval
    from controller.core.analysis.proportion import Counts, harm_alternatives, rate_interval
    from controller.core.analysis.slowness import SHAPE_LOG_WEIGHTS, slowness_increment

    __all__ = [
        "SHAPE_LOG_WEIGHTS",
        "Counts",
        "harm_alternatives",
        "margin_buckets",
        "np",
        "quantile_bucket",
        "quantile_interval",
        "rate_interval",
        "slowness_increment",
    ]
else:
    _MODULES = {
        "SHAPE_LOG_WEIGHTS": "slowness",
        "Counts": "proportion",
        "harm_alternatives": "proportion",
        "margin_buckets": "latency",
        "quantile_bucket": "latency",
        "quantile_interval": "latency",
        "rate_interval": "proportion",
        "slowness_increment": "slowness",
    }

    def __getattr__(name: str) -> object:
        """Import what is asked for the first time; from then on it is an attribute like others."""
        if name == "np":
            value = import_module("numpy")
        elif name in _MODULES:
            value = getattr(import_module(f"controller.core.analysis.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value
