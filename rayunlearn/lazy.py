"""Heavy libraries, each loaded when something of it is used for the first time, and kept quiet.

`from rayunlearn.lazy import torch` costs nothing, `torch.zeros(3)` loads torch. So a command that
reads names, defaults and sources of the families alone never waits for the seconds that these
libraries take to load. Types of theirs stand under `if TYPE_CHECKING:`, in modules whose
annotations are not evaluated (`from __future__ import annotations`). A library that one function
alone uses is imported in that function.
"""

import logging
import os
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

# every library's own setting for what it writes to the terminal
VERBOSITY = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# whose warnings are shown: ours, those of an experiment file and of a script
OURS = r"_?rayunlearn|__main__$"


class LazyModule(ModuleType):
    """Stands for the module of its name, which is imported at the first use of an attribute."""

    def __getattr__(self, name: str) -> Any:
        module, part = import_module(self.__name__), f"{self.__name__}.{name}"
        # a part that its package does not import by itself, such as sklearn.cluster
        if not hasattr(module, name) and hasattr(module, "__path__") and find_spec(part):
            import_module(part)
        value = getattr(module, name)
        # from now on as quick as an attribute of any module
        self.__dict__[name] = value
        return value

    def __reduce__(self) -> tuple[type["LazyModule"], tuple[str]]:
        return LazyModule, (self.__name__,)


def quiet_libraries() -> None:
    """Keep the warnings of libraries from the terminal: they speak to programmers, and nobody who
    runs a command can act on them.

    Holds for the rest of this process and for the processes that it starts. What a person has set
    goes first: the variables of `VERBOSITY`, `PYTHONWARNINGS`, `python -W`.
    """
    for name, level in VERBOSITY.items():
        os.environ.setdefault(name, level)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=rf"(?!{OURS})")
    # without a handler of the root, Python writes every library's log from WARNING on to stderr
    handler = logging.lastResort
    if handler is not None and handler not in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name.partition(".")[0] in ("root", "rayunlearn"))
        logging.getLogger().addHandler(handler)


if TYPE_CHECKING:
    import accelerate as accelerate
    import numpy as np
    import peft as peft
    import polars as polars
    import pyarrow as pyarrow
    import safetensors as safetensors
    import scipy as scipy
    import sklearn as sklearn
    import torch as torch
    import transformers as transformers
    from torch import nn as nn
    from torch.nn import functional as functional
else:
    accelerate = LazyModule("accelerate")
    functional = LazyModule("torch.nn.functional")
    nn = LazyModule("torch.nn")
    np = LazyModule("numpy")
    peft = LazyModule("peft")
    polars = LazyModule("polars")
    pyarrow = LazyModule("pyarrow")
    safetensors = LazyModule("safetensors")
    scipy = LazyModule("scipy")
    sklearn = LazyModule("sklearn")
    torch = LazyModule("torch")
    transformers = LazyModule("transformers")
