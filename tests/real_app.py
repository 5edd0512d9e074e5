"""The class of the real app, for apps in tests: in a separate module, because their module is also named main."""

import importlib.util
from pathlib import Path
from typing import Any

_MAIN = Path(__file__).resolve().parents[1] / "apps" / "totalspineseg" / "main.py"
_spec = importlib.util.spec_from_file_location("totalspineseg_app", _MAIN)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
RealApp: Any = _module.App
