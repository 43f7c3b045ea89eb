"""Compute the network of a model with ONNX Runtime.

Importing this package disables ONNX Runtime's telemetry, which otherwise writes a device id and a database to
the user's cache, and reports sessions to Microsoft.
Source: Privacy.md in the package onnxruntime
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by `import onnxruntime`
