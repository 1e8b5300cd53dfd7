"""The compiled forms of `prefinetune.ops` on CPUs: `kernels.cpp`, built the first time that it is needed and kept in the cache.

It is one call of the system's C++ compiler that takes a few seconds, for the instructions that PyTorch itself uses on this
machine. Where there is no compiler, or PREFINETUNE_NATIVE=0 is set, `takes` says no, a line of the log says why, and everything
runs on the plain forms. Nothing is built or loaded by an import.

Letters: n tokens of a stream, m tokens that it attends to, s sequences, h heads, e size of a head, d hidden size.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from ctypes import c_double, c_int32, c_int64, c_void_p
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from prefinetune.cache import building, cache_folder, mark_used

log = logging.getLogger("prefinetune")

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-version-loops-for-strides")
CAPABILITIES = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}


@cache
def library() -> Any:
    """The loaded kernels, or None."""
    if os.environ.get("PREFINETUNE_NATIVE") == "0":
        log.info("compiled CPU kernels are switched off by PREFINETUNE_NATIVE=0")
        return None
    try:
        loaded = ctypes.CDLL(str(built()))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "compiled CPU kernels are not used, and updates take longer: %s. A C++ compiler (g++, or the one that CXX names) "
            "makes them in a few seconds (apt install g++, dnf install gcc-c++); PREFINETUNE_NATIVE=0 goes without them silently",
            first_complaint(error),
        )
        return None
    log.info("compiled CPU kernels: %d floats at a time", loaded.vector_width())
    return loaded


def first_complaint(error: Exception) -> str:
    """What is wrong, in one line; of a compiler's many, the first that speaks of an error."""
    lines = error.stderr.splitlines() if isinstance(error, subprocess.CalledProcessError) else []
    return next((line for line in lines if "error" in line), str(error))


def built() -> Path:
    """The library for this machine, compiled unless it is in the cache.

    Raises:
        OSError: no compiler, the cache cannot be written, or what was made cannot be loaded.
        subprocess.SubprocessError: the compiler failed.
    """
    command, folder = recipe()
    if not (folder / "manifest.json").exists():
        with building(folder) as made:
            command += ["-o", str(made / "kernels.so")]
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=300)
            ctypes.CDLL(str(made / "kernels.so"))  # what cannot be loaded is not kept
            (made / "manifest.json").write_text(json.dumps(command))
    mark_used(folder)
    return folder / "kernels.so"


def recipe() -> tuple[list[str], Path]:
    """The compiler's command on this machine, but for where its output goes, and the folder of the cache that keeps it.

    Raises:
        OSError: there is no compiler.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise OSError(f"there is no C++ compiler {os.environ.get('CXX') or 'g++'!r}")
    flags = CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ())
    command = [compiler, *FLAGS, *flags, str(SOURCE), *openmp()]
    key = [SOURCE.read_text(), *command, sys.platform, platform.machine()]
    return command, cache_folder() / "native" / blake2b("\0".join(key).encode(), digest_size=8).hexdigest()


def openmp() -> list[str]:
    """The OpenMP library that PyTorch brings, so that there is one pool of threads and not two."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0])] if found else []


def takes(*tensors: torch.Tensor) -> bool:
    """Whether there are kernels for these tensors: float32 on a CPU, last dimensions whole vectors of the machine."""
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors):
        return False
    kernels = library()
    return kernels is not None and all(tensor.shape[-1] % kernels.vector_width() == 0 for tensor in tensors)


def new_seed(dropout: float) -> int:
    """Of a mask; drawn from PyTorch's generator, so that `torch.manual_seed` decides."""
    return int(torch.randint(2**62, (), device="cpu")) if dropout else 0


def at(tensor: torch.Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())


# ---- attention


class Rows(ctypes.Structure):
    """As in the source."""

    _fields_ = (("at", c_void_p), ("row", c_int64))

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Rows:
        return cls(tensor.data_ptr(), tensor.stride(0))


class Attention(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        ("scale", c_double), ("dropout", c_double), ("seed", c_int64),
        ("causal", c_int32), ("window", c_int32),
        ("count", c_int64), ("heads", c_int64), ("size", c_int64),
        ("query_ends", c_void_p), ("key_ends", c_void_p), ("sums", c_void_p),
        ("query", Rows), ("key", Rows), ("value", Rows), ("out", Rows),
        ("grad", Rows), ("grad_query", Rows), ("grad_key", Rows), ("grad_value", Rows),
    )  # fmt: skip


def heads_together(tensor: torch.Tensor) -> torch.Tensor:
    """[n, h, e] with the heads of a token side by side; tokens may stand apart."""
    return tensor if tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2] else tensor.contiguous()


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, query_ends, key_ends, scale, dropout, causal, window):
        query, key, value = (heads_together(tensor) for tensor in (query, key, value))
        n, heads, _ = query.shape
        out, sums = query.new_empty(query.shape), query.new_empty(2, heads, n)
        ctx.settings = scale, dropout, new_seed(dropout), causal, -1 if window is None else window
        saved = query, key, value, out, sums, query_ends, key_ends
        library().attend_forward(ctypes.byref(attention(*saved, ctx.settings)))
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        grad, grads = heads_together(grad), [tensor.new_empty(tensor.shape) for tensor in saved[:3]]
        library().attend_backward(ctypes.byref(attention(*saved, ctx.settings, grad, *grads)))
        return *grads, None, None, None, None, None, None


def attention(query, key, value, out, sums, query_ends, key_ends, settings, *grads) -> Attention:
    of_streams, of_grads = (tuple(map(Rows.of, tensors)) for tensors in ((query, key, value, out), grads))
    _, heads, size = query.shape
    return Attention(
        *settings, len(query_ends) - 1, heads, size, query_ends.data_ptr(), key_ends.data_ptr(), sums.data_ptr(),
        *of_streams, *of_grads,
    )  # fmt: skip


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    scale: float,
    dropout: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """`ops.attend`: [n, h, e] and twice [m, h, e] with int32 ends [s + 1]; returns [n, h, e]."""
    return Attend.apply(query, key, value, query_ends, key_ends, scale, dropout, causal, window)


# ---- row by row


class DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, bias, residual, weight, shift, epsilon, dropout):
        hidden, bias, residual, weight, shift = (one.contiguous() for one in (hidden, bias, residual, weight, shift))
        n, d = hidden.shape
        ctx.dropout, ctx.seed = dropout, new_seed(dropout)
        out, normal, inverses = torch.empty_like(hidden), torch.empty_like(hidden), hidden.new_empty(n)
        library().add_norm_forward(
            c_int64(n), c_int64(d), at(hidden), at(bias), at(residual), at(weight), at(shift), c_double(epsilon),
            c_double(dropout), c_int64(ctx.seed), at(out), at(normal), at(inverses),
        )  # fmt: skip
        ctx.save_for_backward(normal, inverses, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normal, inverses, weight = ctx.saved_tensors
        grad = grad.contiguous()
        n, d = grad.shape
        grad_hidden, grad_residual, sums = torch.empty_like(grad), torch.empty_like(grad), grad.new_empty(3, d)
        library().add_norm_backward(
            c_int64(n), c_int64(d), at(grad), at(normal), at(inverses), at(weight), c_double(ctx.dropout), c_int64(ctx.seed),
            at(grad_hidden), at(grad_residual), at(sums),
        )  # fmt: skip
        grad_weight, grad_shift, grad_bias = sums
        return grad_hidden, grad_bias, grad_residual, grad_weight, grad_shift, None, None


def dropout_add_norm(
    hidden: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    epsilon: float,
    dropout: float,
) -> torch.Tensor:
    """`ops.dropout_add_norm`: [n, d] twice, [d] three times."""
    return DropoutAddNorm.apply(hidden, bias, residual, weight, shift, epsilon, dropout)


class BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, bias):
        hidden, bias = hidden.contiguous(), bias.contiguous()
        out = torch.empty_like(hidden)
        library().gelu_forward(*map(c_int64, hidden.shape), at(hidden), at(bias), at(out))
        ctx.save_for_backward(hidden, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, bias = ctx.saved_tensors
        grad = grad.contiguous()
        grad_hidden, grad_bias = torch.empty_like(grad), torch.empty_like(bias)
        library().gelu_backward(*map(c_int64, grad.shape), at(grad), at(hidden), at(bias), at(grad_hidden), at(grad_bias))
        return grad_hidden, grad_bias


def bias_gelu(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`ops.bias_gelu`: [n, d] and [d]."""
    return BiasGelu.apply(hidden, bias)


class Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, dropout, seed):
        ctx.dropout, ctx.seed = dropout, seed
        return masked(values, dropout, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return masked(grad, ctx.dropout, ctx.seed), None, None


def masked(values: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
    values = values.contiguous()
    out = torch.empty_like(values)
    library().drop(*map(c_int64, values.shape), at(values), c_double(dropout), c_int64(seed), at(out))
    return out


def drop(values: torch.Tensor, dropout: float) -> torch.Tensor:
    """`ops.drop`: [n, d]."""
    return Drop.apply(values, dropout, new_seed(dropout))
