"""Commands for our code in SGLang's schedulers, in the form in which SGLang carries tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # read when sglang is imported

from sglang.srt.utils import MultiprocessingSerializer


def command_payload(command: Mapping[str, Any]) -> bytes:
    """A command as SGLang carries it: the name of an empty tensor."""
    payload: bytes = MultiprocessingSerializer.serialize([(json.dumps(command), torch.empty(0))])
    return payload
