"""Several processes, one update. Accelerate gives each its place in the group and its device; here is what makes their work one
result: gradients and counts are summed, decisions are taken together, and what a process found is told to all.

Every example's weight in the whole update is fixed before the update is dealt out, so gradients are *summed*, never averaged.
And the sum leaves out what nobody used: a head without examples keeps gradient None on all processes, and costs no traffic.
(DDP sends zeros for it, and averages.)
"""

from __future__ import annotations

import atexit
import json
import math
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch import nn

from prefinetune import launcher
from prefinetune.batch import Batch
from prefinetune.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from prefinetune.model import MultiTask

BUCKET = 16 * 2**20  # numbers of a gradient that are summed in one message


class Process(Accelerator):
    """This process among those that the launcher started (torchrun, accelerate launch), in the precision of one run.

    Accelerate keeps one precision for all that a process ever does, and takes it, and steps of accumulation that would divide
    the loss, from the launcher's configuration too. Here a run has what it was configured to, whatever was run before it.

    Args:
        timeout: seconds after which a process gives up waiting for the others.

    Raises:
        InputError: the launcher asks for an engine that cannot keep what the method needs.
    """

    def __init__(self, precision: Literal["float32", "bfloat16"], timeout: float) -> None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            raise InputError(
                "DeepSpeed is not supported: its optimizer also moves heads that no example of an update used. Use FSDP2 instead "
                "(accelerate launch --use_fsdp --fsdp_version 2)"
            )
        self.precision = precision
        had_group = dist.is_initialized()
        super().__init__(
            mixed_precision=None if is_initialized() else "no",
            cpu=launcher.count() > 1 and not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
        if not had_group and (group := dist.group.WORLD):
            atexit.register(leave, weakref.ref(group))

    @contextmanager
    def autocast(self, autocast_handler: None = None) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    def backward(self, loss: torch.Tensor, **options: Any) -> None:
        loss.backward(**options)


def leave(group: weakref.ref[dist.ProcessGroup]) -> None:
    """Destroy the group that a `Process` made, as the program ends. Gloo's threads may hold the last message's tensors, and one
    that lets go of them while the interpreter is taken down aborts the program. They end when nothing refers to the group, so
    this does not either. Not NCCL's, which waits for all that was queued: in vain, where another process died."""
    if dist.is_initialized() and dist.group.WORLD is group() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


# ---- sums


def total(values: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """The sum of an array of float64 over processes."""
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(torch.from_numpy(values).to(accelerator.device), "sum").cpu().numpy()


def anyone(flag: bool, accelerator: Accelerator) -> bool:
    """Whether a flag is set on any process."""
    return bool(total(np.array([float(flag)]), accelerator)[0])


def add_up(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Sum gradients over processes, in place. One that only some have is summed over those; one that none has stays None. What is
    sharded has been summed in backward."""
    if accelerator.num_processes == 1:
        return
    mine = [parameter for parameter in parameters if not is_piece(parameter)]
    used = total(np.array([float(parameter.grad is not None) for parameter in mine]), accelerator) > 0
    for bucket in buckets([parameter for parameter, is_used in zip(mine, used.tolist(), strict=True) if is_used]):
        flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1) for one in bucket])
        pieces = accelerator.reduce(flat, "sum").split([one.numel() for one in bucket])
        for parameter, piece in zip(bucket, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)


def buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type in groups of about `BUCKET` numbers, in their order."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and (sum(map(torch.numel, bucket)) >= BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def clip(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scale all gradients together so that their norm is at most `most`; gives the norm before."""
    given = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[one for one in given if is_piece(one) == sharded] for sharded in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm([one.grad for one in kind if one.grad is not None])) for kind in kinds if kind]
    norm = torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
    for kind in filter(None, kinds):
        torch.nn.utils.clip_grads_with_norm_(kind, most or math.inf, norm.to(place_of(kind[0])))
    return float(norm)


# ---- telling


def tell(value: Any, accelerator: Accelerator) -> list[Any]:
    """What each process gave, on all of them. It travels as JSON: unpickling what another machine sent would be to run it."""
    if accelerator.num_processes == 1:
        return [value]
    text = torch.tensor(bytearray(json.dumps(value).encode()), dtype=torch.uint8, device=accelerator.device)
    sizes = accelerator.gather(torch.tensor([len(text)], device=accelerator.device)).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=accelerator.device)
    padded[: len(text)] = text
    rows = accelerator.gather(padded[None]).cpu().numpy()
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def merged(part: Mapping[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """One mapping of the parts that each process holds."""
    return {key: value for each in tell(dict(part), accelerator) for key, value in each.items()}


def agree(what: str, mine: str | None, accelerator: Accelerator) -> None:
    """Make sure that all processes found the same.

    Raises:
        InputError: they did not.
    """
    found = tell(mine, accelerator)
    if len(set(found)) > 1:
        raise InputError(
            f"process 0 found {what} {found[0]}, another {next(one for one in found if one != found[0])}; the run's folder must "
            "be on a file system that all machines share"
        )


# ---- a trunk that is sharded (FSDP2), where Accelerate's configuration says so


def shard(model: MultiTask, accelerator: Accelerator) -> None:
    """Shard a model's trunk, its gradients and its optimizer state over processes, if Accelerate was configured to.

    The whole trunk is one group: what reads streams calls the parts of a layer, not the layer, so that there is no place in
    between where torch could fetch the next one's weights. A pooler stays whole, as heads do: some updates do not use it.

    Raises:
        InputError: the configuration asks for FSDP1, the trunk has adapters, or a head's output layer is a part of the trunk.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise InputError("fsdp_version: 1 is not accepted; expected 2 (accelerate launch --fsdp_version 2)")
    backbone = model.backbone
    if backbone.adapted:
        raise InputError("lora.rank: a trunk with adapters cannot be sharded (FSDP) yet; leave one of the two out")
    of_trunk = set(backbone.parameters())
    for task in model.families:
        if not of_trunk.isdisjoint(model.head(task).parameters()):
            raise InputError(
                f"task {task!r} writes with the trunk's own embeddings, which cannot be sharded yet; leave such tasks "
                "(generation, denoising) out, or do without FSDP"
            )
    pooler = getattr(backbone.trunk, "pooler", None)
    fully_shard(
        backbone,
        mesh=init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        reshard_after_forward=False,  # heads read tied weights after the trunk's forward pass
        ignored_params=set(pooler.parameters()) if isinstance(pooler, nn.Module) else set(),
        mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        offload_policy=plugin.cpu_offload,  # Accelerate made a policy of what was said
    )
    assert is_sharded(backbone)
    backbone.set_gradient_divide_factor(1.0)  # summed, as everything is
    backbone.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def is_sharded(backbone: nn.Module) -> TypeGuard[FSDPModule]:
    return hasattr(backbone, "unshard")  # not by its class, whose import takes half a second


@contextmanager
def gathered(backbone: nn.Module) -> Iterator[None]:
    """Within, every process has the whole trunk and may use it by itself."""
    if is_sharded(backbone):
        backbone.unshard()
    yield
    if is_sharded(backbone):
        backbone.reshard()


def even(batches: Sequence[Batch], backbone: nn.Module, accelerator: Accelerator) -> list[Batch]:
    """As many micro-batches on each process, where the trunk is sharded and all must take part in each forward pass: those with
    fewer go once more over one of theirs, with weight 0."""
    if not is_sharded(backbone):
        return list(batches)
    most = max(tell(len(batches), accelerator))
    return [*batches, *[batches[-1].without_weight()] * (most - len(batches))]


def is_piece(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether other processes hold the rest of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all that other processes hold of it; all must ask."""
    return tensor.full_tensor() if is_piece(tensor) else tensor


def place_of(parameter: torch.Tensor) -> torch.device:
    return parameter.to_local().device if is_piece(parameter) else parameter.device


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as another one is."""
    if not is_piece(other) or is_piece(tensor):
        return tensor.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
