"""What is installed and what the machine is: in short as every run records it, in full as a bug report needs it.

Nothing here builds, starts or downloads anything, and no value that may be a secret is told. Torch is imported inside functions.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from prefinetune.safety import SECRET_NAME, without_secrets

PACKAGES = (
    "prefinetune", "torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors", "huggingface_hub", "numpy",
)  # fmt: skip
COMMANDS = ("prefinetune", "__main__.py")  # what a process is called that runs our command line
# Environment variables that change what happens here; of the others nothing is told.
VARIABLES = re.compile(
    r"(ACCELERATE|CUDA|GOMP|HF|HIP|HUGGINGFACE|KMP|MKL|MLFLOW|NCCL|OMP|PREFINETUNE|PYTORCH|ROCR|SLURM|TOKENIZERS|TORCH|TRANSFORMERS"
    r"|WANDB)_\w+|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|CXX|NO_COLOR|XDG_CACHE_HOME|(HTTPS?|NO)_PROXY",
    re.IGNORECASE,
)
SET_ONLY = re.compile(f"{SECRET_NAME.pattern}|PROXY|ADDR|COOKIE", re.IGNORECASE)  # variables whose values are not shown


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---- of a run


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants to repeat the run."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [gpu["name"] for gpu in gpus()] or [processor()],
        "command": shlex.join(["prefinetune", *map(without_secrets, sys.argv[1:])])
        if Path(sys.argv[0]).name in COMMANDS
        else None,
        "packages": {package: version(package) for package in PACKAGES},
        "started": now(),
    }


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # no Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """What torch can compute on beside the CPU."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = [{"name": one.name, "memory_gib": gib(one.total_memory), "capability": f"{one.major}.{one.minor}"} for one in found]
    return listed or [{"name": "Apple GPU (MPS)"}] * torch.backends.mps.is_available()


def gib(size: float) -> float:
    """Bytes as GiB."""
    return round(size / 2**30, 1)


# ---- of a bug report


def report() -> dict[str, Any]:
    """Everything that a bug report needs, as plain values."""
    import psutil
    import torch

    packages, extras = installed()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "prefinetune": version("prefinetune"),
        "python": f"{sys.version.split()[0]} ({platform.python_implementation()})",
        "system": platform.platform(),
        "torch": f"{torch.__version__} ({build()})",
        "packages": packages,
        "extras": extras,
        "cpu": f"{processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "cores": {"logical": os.cpu_count(), "physical": psutil.cpu_count(logical=False), "usable": usable},
        "threads": torch.get_num_threads(),
        "memory_gib": {"total": gib(psutil.virtual_memory().total), "available": gib(psutil.virtual_memory().available)},
        "gpus": gpus(),
        "driver": driver(),
        "kernels": kernels(),
        "variables": variables(os.environ),
    }


def build() -> str:
    """What torch was built for."""
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return "MPS" if torch.backends.mps.is_built() else "CPU"


def installed() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Versions of what prefinetune needs, and of what each of its extras adds; None for what is not there."""
    from packaging.requirements import Requirement

    needed, extras = dict.fromkeys(PACKAGES[1:]), dict[str, dict[str, str | None]]()
    try:
        wanted = [Requirement(text) for text in metadata.requires("prefinetune") or ()]
        names = metadata.metadata("prefinetune").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # it runs from its source and was never installed
        wanted, names = [], []
    for one in wanted:
        mine = [name for name in names if one.marker and one.marker.evaluate({"extra": name})]
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            needed[one.name] = None
        for name in mine if one.name != "prefinetune" else ():
            extras.setdefault(name, {})[one.name] = version(one.name)
    return {name: version(name) for name in needed}, extras


def driver() -> list[str] | None:
    """What NVIDIA's driver sees, whether or not torch can use it: name, memory and the driver's version of each GPU. None without
    a driver that answers."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi fails ({type(error).__name__})"]
    return answer.split("\n")[:-1]


def kernels() -> str:
    """Whether the compiled CPU kernels are there, and by which compiler."""
    from prefinetune import native

    if os.environ.get("PREFINETUNE_NATIVE") == "0":
        return "switched off by PREFINETUNE_NATIVE=0"
    try:
        command, folder = native.recipe()
        told = subprocess.run([command[0], "--version"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"none: {error}"
    compiler = next(iter(told.splitlines()), command[0])
    return f"built by {compiler}" if (folder / "manifest.json").exists() else f"built when first needed, by {compiler}"


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that change what happens here. Of those that may be secrets, only that they are set; the user's
    folder is ~."""
    found = {name: value for name, value in sorted(environ.items()) if VARIABLES.fullmatch(name)}
    return {name: "set" if SET_ONLY.search(name) else without_home(without_secrets(value)) for name, value in found.items()}


def without_home(text: str) -> str:
    """The text with ~ for the user's folder, whose name is nobody's business."""
    return re.sub(rf"(?<![\w/.]){re.escape(str(Path.home()))}(?=/|\W|$)", "~", text)


def markdown(found: Mapping[str, Any]) -> str:
    """`report`'s values as a list that an issue can hold."""

    def told(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {told(one)}" for name, one in value.items()) or "none"
        if isinstance(value, list):
            return "; ".join(map(told, value)) or "none"
        return {None: "none", "": "(empty)"}.get(value, " ".join(str(value).split()))  # a line each

    lines = []
    for name, value in found.items():
        if name in ("extras", "variables"):
            lines += [f"- {name}:{'' if value else ' none'}", *(f"  - {inner}: {told(one)}" for inner, one in value.items())]
        else:
            lines.append(f"- {name.removesuffix('_gib')}{' (GiB)' if name.endswith('_gib') else ''}: {told(value)}")
    return "\n".join(lines)
