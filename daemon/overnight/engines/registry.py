"""Engines by name. A factory is imported when a warm server asks for it, never in the dispatcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overnight.engines.base import Engine
from overnight.errors import ModelError


def make(warm: dict[str, Any], store: str) -> Engine:
    """The engine of a warm specification (empty: that of commands), not loaded yet.

    Raises ModelError for a name that is not installed."""
    if not warm:
        from overnight.engines.commands import Commands

        return Commands()
    name = warm["engine"]
    if name == "scripted":
        from overnight.engines.scripted import ScriptedEngine

        return ScriptedEngine(warm, store)
    if name == "transformers":
        try:
            from overnight.engines.transformers import TransformersEngine
        except ModuleNotFoundError as missing:
            raise ModelError(
                f"engine transformers needs the package {missing.name}: pip install 'overnight[transformers]'"
            ) from None
        engine: Engine = TransformersEngine(warm, Path(store))
        return engine
    raise ModelError(f"there is no engine {name!r}; there are: scripted, transformers")
