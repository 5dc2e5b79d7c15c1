"""What values are stored in and computed in, by name. Light: settings are checked where nothing is computed."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "fp16", "int8", "int4"]
"""Of a value of an embedding row."""

Compute = Literal["fp32", "bf16", "fp8"]
"""Of the products of the cached layers."""
