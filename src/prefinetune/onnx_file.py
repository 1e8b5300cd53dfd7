"""A task's model as an ONNX file, through PyTorch's own exporter: Optimum's (0.1) is for Transformers before 4.58."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefinetune.errors import InputError

FILE = "model.onnx"
SAMPLE = [["an example", "of two texts, one longer than the other"]] * 2  # a dimension of size 1 would be taken for fixed
AT_MOST = 1e-3  # that a logit may differ from PyTorch's


def check_onnx(is_encoder_decoder: bool) -> None:
    """Raises InputError where a package is missing, or for models that write: Transformers' `generate` is no part of a graph."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--onnx: {error.name} is not installed: pip install 'prefinetune[onnx]'") from None
    if is_encoder_decoder:
        raise InputError("--onnx: of encoder-decoders no ONNX files are written; leave it out")


def write_onnx(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write folder/model.onnx, and run it once.

    Inputs are the tokenizer's, [rows, tokens] of any size, for multiple choice [rows, options, tokens]; outputs have
    Transformers' names.

    Raises:
        InputError: the exporter cannot translate this architecture, or the file gives other outputs.
    """
    import onnxruntime

    is_choice = type(model).__name__.endswith("MultipleChoice")
    rows = [text for pair in SAMPLE for text in pair]
    inputs = dict(tokenizer(rows if is_choice else SAMPLE[0], padding=True, return_tensors="pt"))
    sizes = ["rows", *(["options"] if is_choice else []), "tokens"]
    if is_choice:
        inputs = {name: tensor.view(2, 2, -1) for name, tensor in inputs.items()}
    dynamic = {name: {at: torch.export.Dim(size) for at, size in enumerate(sizes)} for name in inputs}
    model = model.cpu().eval()
    with torch.no_grad():
        expected = model(**inputs)
    names = [name for name in ("logits", "start_logits", "end_logits") if name in expected]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its steps
            torch.onnx.export(
                model, (), folder / FILE, kwargs=inputs, input_names=list(inputs), output_names=names, dynamic_shapes=dynamic,
                dynamo=True, external_data=False,
            )  # fmt: skip
    except Exception as error:  # of several kinds, and many lines
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"--onnx: {type(model).__name__} could not be translated ({reason}); leave it out") from error
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    found = session.run(names, {one.name: inputs[one.name].numpy() for one in session.get_inputs()})
    for name, values in zip(names, found, strict=True):
        if not np.allclose(values, expected[name].numpy(), atol=AT_MOST, rtol=AT_MOST):
            raise InputError(f"--onnx: {FILE} of {type(model).__name__} gives other {name} than PyTorch; leave it out")
    return folder / FILE
