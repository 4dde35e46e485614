"""Images, models, masks: blocking computation that knows neither Ray nor FastAPI."""

from __future__ import annotations

import sys
from typing import Any, cast

# OpenVINO's conversion reports its use to its makers when it finds this package, which comes with
# it.  A service tells nobody what it does: to whoever imports it, the package is not installed.
cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
