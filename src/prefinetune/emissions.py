"""Energy and emissions of a training as codecarbon estimates them, where it is installed (pip install 'prefinetune[emissions]').

As with Transformers' own callback, whoever has installed it is measured. Here no address is asked where the machine is: the
variable CODECARBON_COUNTRY_ISO_CODE (DEU, USA, ...) says so, and without it the mix is the world's average.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefinetune import launcher
from prefinetune.environment import now
from prefinetune.files import append

FILE = "emissions.jsonl"  # a record per process that trained; one that was killed leaves none


@contextmanager
def measured(folder: Path | None) -> Iterator[None]:
    """Within, what the machine of the main process uses is estimated, whatever else runs on it; then a record is added to
    `folder`: seconds, kWh, and kg of CO2 equivalents."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        yield
        return
    if folder is None or not launcher.is_main():
        yield
        return
    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # it speaks before it reads its own log_level
    tracker = OfflineEmissionsTracker(save_to_file=False, save_to_api=False, log_level="error")
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        if found := tracker.final_emissions_data:  # none where codecarbon failed, which it only logs
            record = {
                "seconds": found.duration, "kwh": found.energy_consumed, "kg_co2e": found.emissions,
                "mix": found.country_name or "world average", "by": f"codecarbon {found.codecarbon_version}", "when": now(),
            }  # fmt: skip
            append(folder / FILE, record)
