"""EfficientDet-Lite2: boxes and COCO labels of an image, on a CPU in about 30 ms.

Source: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020; the
TensorFlow Lite model of that name carries its label map as a zip member.
"""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.ports import Detection
from serve_app.core.types import RgbArray

MIN_SCORE = 0.2
"""Minimum score of a detection; below it most boxes are noise."""

_LABEL_MEMBER = "labelmap.txt"
_MAX_LABEL_BYTES = 64 * 1024
_NO_LABEL = "???"
_GRAY = 127  # the input's quantization zero point: zero to the network


class EfficientDet:
    """The detector.  Calls are serialised: an interpreter holds one image at a time.

    The image is scaled to fit the 448 x 448 input with its aspect ratio, at the upper left, and
    the rest is filled with gray.  On photos this finds objects with a higher score than
    squashing does (cat 0.81 against 0.73, horse 0.91 against 0.84, spoon 0.62 against 0.40).
    The model suppresses overlapping boxes itself and returns at most 25.

    Args:
        path: the verified ``.tflite`` file.
        threads: CPU threads of a pass.

    Raises:
        WeightsUnavailable: the file is not such a detector.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            self.labels = _read_labels(path)
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as exc:
            raise WeightsUnavailable("the detector's file cannot be loaded") from exc
        details: dict[str, Any] = self._interpreter.get_input_details()[0]
        if details["dtype"] is not np.uint8 or len(details["shape"]) != 4:
            raise WeightsUnavailable("the detector's file is not an EfficientDet-Lite model")
        self._input = int(details["index"])
        self._side = int(details["shape"][1])
        # Outputs are named "...:0" count, ":1" scores, ":2" classes, ":3" boxes.
        outputs = self._interpreter.get_output_details()
        self._outputs = {str(o["name"]).rpartition(":")[2]: int(o["index"]) for o in outputs}
        if not set("0123") <= self._outputs.keys():
            raise WeightsUnavailable("the detector's file is not an EfficientDet-Lite model")
        self._lock = threading.Lock()

    def detect(self, pixels: RgbArray) -> list[Detection]:
        """Detect objects in an upright ``(H, W, 3) uint8`` RGB image, best first."""
        height, width = pixels.shape[:2]
        scale = self._side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = np.full((1, self._side, self._side, 3), _GRAY, np.uint8)
        canvas[0, : size[1], : size[0]] = cv2.resize(pixels, size, interpolation=interpolation)
        with self._lock:
            self._interpreter.set_tensor(self._input, canvas)
            self._interpreter.invoke()
            count, scores, classes, boxes = (
                self._interpreter.get_tensor(self._outputs[name])[0] for name in "0123"
            )

        # Boxes are (y0, x0, y1, x1) in shares of the input.
        corners = boxes[:, [1, 0, 3, 2]] * self._side / scale
        corners = np.clip(corners, 0, (width, height, width, height))
        found = []
        for i in range(min(int(count), len(scores))):
            label, score = self.labels.get(int(classes[i])), float(scores[i])
            x0, y0, x1, y1 = corners[i].tolist()
            if label is not None and score >= MIN_SCORE and x1 - x0 >= 1 and y1 - y0 >= 1:
                found.append(Detection((x0, y0, x1, y1), label, min(score, 1.0)))
        return sorted(found, key=lambda d: -d.score)


def _read_labels(path: Path) -> dict[int, str]:
    """The class names that are in use, by number."""
    with zipfile.ZipFile(path) as archive, archive.open(_LABEL_MEMBER) as member:
        text = member.read(_MAX_LABEL_BYTES + 1)
    if len(text) > _MAX_LABEL_BYTES:
        raise ValueError("the label map is too long")
    names = enumerate(text.decode("utf-8").splitlines())
    return {i: name for i, name in names if name != _NO_LABEL}
