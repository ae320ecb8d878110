"""What libraries would load when a rank starts, and nobody needs, is spared: seconds of CPU, thousands of files.

Each of these imports a whole library for a name or two which nothing of ours calls. What is put in its place is there
while that one module is loaded, and does the real thing where it is called after all. Where a library has changed its
ways, nothing is spared and nothing breaks. ``python -m benchmarks.startup`` measures; tests/train/test_imports.py holds
it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any


def install() -> None:
    """Watch for the modules of :data:`SPARED`, which may be imported from anywhere (train/__init__.py).

    And let DeepSpeed not warn that a machine has no GPU, as it does where accelerate looks whether it is there.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in str(record.msg))


@contextmanager
def standing_in(name: str, **members: Any) -> Iterator[None]:
    """Inside, a module that was not imported yet has these members at once; asked for another, it is imported."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in = _StandIn(name)
    vars(stand_in).update(members)
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


class _StandIn(ModuleType):
    def __getattr__(self, member: str) -> Any:
        if member.startswith("__"):  # the import system asks for some
            raise AttributeError(member)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), member)


@contextmanager
def _scanning_once(module: ModuleType) -> Iterator[None]:
    """transformers reads the sources of all its models to know which name is in which file: 1,900 files, and twice."""
    yield
    scan = getattr(module, "create_import_structure_from_path", None)
    if scan is not None:
        vars(module)["create_import_structure_from_path"] = _by_folder(scan)


def _by_folder(scan: Callable[[str], Any]) -> Callable[[Any], Any]:
    """The scan of a folder, or of that of a file, done once."""
    once = cache(scan)
    return lambda path: once(os.path.dirname(path) if os.path.isfile(path) else os.fspath(path))


def _without_scipy(_: ModuleType) -> AbstractContextManager[None]:
    """transformers imports scipy.optimize, 320 modules, for the losses of object detection."""

    def linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("scipy.optimize").linear_sum_assignment(*args, **kwargs)

    return standing_in("scipy.optimize", linear_sum_assignment=linear_sum_assignment)


@contextmanager
def _uncompiled(_: ModuleType) -> Iterator[None]:
    """ZeRO asks at every start, and at stage 2 in every step, whether we use DeepSpeed's Muon; ours is train/muon.py.

    To import it is to compile it, which needs torch's compiler: 880 modules.
    """
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    before = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        yield
    finally:
        compiler.compile = before


SPARED: dict[str, Callable[[ModuleType], AbstractContextManager[None]]] = {
    "transformers.utils.import_utils": _scanning_once,
    "transformers.loss.loss_utils": _without_scipy,
    "deepspeed.runtime.zero.muon.original_muon": _uncompiled,
}  # what is done around the loading of a module


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with SPARED[module.__name__](module):
            super().exec_module(module)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in SPARED else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
            return spec
        return None
