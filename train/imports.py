"""What libraries would load when a rank starts, and nobody needs, is spared: seconds of CPU, thousands of files.

Each of these is a library that imports a whole other one for a name or two which nothing of ours calls. What is put in
its place is there for the import alone, and does the real thing where it is called after all. Where a library has
changed its ways, nothing is spared and nothing breaks. ``python -m benchmarks.startup`` measures; a test holds it.

    transformers  reads the sources of all its models, 1,900 files, to know which file has which name; and does it twice
    transformers  imports scipy.optimize for the losses of object detection: 320 modules
    deepspeed     imports torch's compiler to compile a Muon that is not ours (train/muon.py): 880 modules
    wandb         imports its launcher of jobs and all its public API, to see that no job was launched (train/track.py)
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

SCANNER = "transformers.utils.import_utils"


def import_transformers() -> None:
    """Import what models are made of, at half the price; to be called before anything else imports transformers."""
    if "transformers" in sys.modules:
        return
    with _scanned_once(), standing_in("scipy.optimize", linear_sum_assignment=_linear_sum_assignment):
        importlib.import_module("transformers.modeling_utils")


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


def _linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
    return importlib.import_module("scipy.optimize").linear_sum_assignment(*args, **kwargs)


@contextmanager
def _scanned_once() -> Iterator[None]:
    """Inside, transformers reads the sources of its models once, not again for its package ``models``."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds the module that scans, and has it remember what it found in a folder."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == SCANNER else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Remembering(spec.loader.name, spec.loader.path)
        return spec


class _Remembering(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        scan = getattr(module, "create_import_structure_from_path", None)
        if scan is not None:
            vars(module)["create_import_structure_from_path"] = _by_folder(scan)


def _by_folder(scan: Callable[[str], Any]) -> Callable[[Any], Any]:
    """The scan of a folder, or of that of a file, done once."""
    once = cache(scan)
    return lambda path: once(os.path.dirname(path) if os.path.isfile(path) else os.fspath(path))


def import_deepspeeds_muon() -> None:
    """Import it without compiling it: ZeRO asks at every start, and at stage 2 in every step, whether we use it."""
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    before = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = before
