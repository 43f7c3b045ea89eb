"""Compute the network of a model with ONNX Runtime.

Importing this package disables ONNX Runtime's telemetry. Without that, its import writes an id of the device
and a database into the user's cache, and its sessions report to Microsoft.
Source: Privacy.md in the package onnxruntime
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by `import onnxruntime`
