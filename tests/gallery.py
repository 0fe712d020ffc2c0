"""`make gallery`: renew the pictures that the README shows, from a run of the main job's parts on the embedded PostgreSQL."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from eventcore_lab import Experiment, Lab, Targets, plots, run_each, vary

OUT = Path("reports/gallery")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab, limits = Lab(Path(folder) / "lab.duckdb"), Targets.production()
        base = Experiment(store="postgres", duration_s=5.0)
        commands = run_each(vary(base, pacer=[f"saturate:concurrency={n}" for n in (1, 10, 50, 100)]), lab)
        floor = run_each(vary(base, store="null"), lab)
        writes = run_each(vary(base, workload=[f"write_events:batch={n}" for n in (1, 10, 100, 1000)]), lab)
        [at_rate] = run_each(vary(base, pacer="poisson:rate=250", duration_s=45.0), lab)
        pictures = {
            "commands": plots.throughput_by(commands, "concurrency", "commands_per_second", limits, floor),
            "events": plots.throughput_by(writes, "batch", "events_per_second", limits),
            "latency": plots.latency_percentiles([at_rate], limits),
            "over-time": plots.over_time(at_rate, limits),
        }
        OUT.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            data, _ = picture._repr_mimebundle_()
            (OUT / f"{name}.png").write_bytes(small(data["image/png"]))


def small(png: bytes) -> bytes:
    """The same picture in 64 colours, which is all our style needs: what stands in git is not to be larger than it must."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
