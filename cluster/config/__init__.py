"""Configuration: `harbor.yaml` read, checked and compiled."""

from cluster.config.changes import concerns, refusals
from cluster.config.compiled import Compiled, compile_config
from cluster.config.load import check, load, load_mapping, read_document
from cluster.config.model import Config
from cluster.config.values import duration

__all__ = [
    "Compiled",
    "Config",
    "check",
    "compile_config",
    "concerns",
    "duration",
    "load",
    "load_mapping",
    "read_document",
    "refusals",
]
