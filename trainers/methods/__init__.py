"""Fine-tuning methods: what is trained, what is minimised, and which weights are kept.

One module for each method, named as in the configuration; `base` has the interface and `registry`
the table of all methods. Importing this package registers the shipped methods.
"""

from importlib import import_module
from pkgutil import iter_modules

from trainers.methods.registry import register_method

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["register_method"]
