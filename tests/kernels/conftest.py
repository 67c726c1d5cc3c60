"""Kernels are tested where they can run: on the GPU if there is one, else Triton's interpreter on CPU tensors."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
