"""Kernel timings of a result file as CSV: one row per kernel, workload and provider."""

import csv
import io
from typing import Any

from zonos2_triton.bench.suite.results import Result, all_passed, items, left_out

CONDITIONS = ("gpu", "driver", "torch", "triton", "commit", "date")
FIGURES = ("median_us", "p20_us", "p80_us", "gb_per_s", "tflop_per_s")
HEADS = ("kernel", "provider", "workload", "dtype", "status", *FIGURES, "error_ratio", "reason", *CONDITIONS)


def as_csv(result: Result) -> str:
    """CSV with a header line. Rates use the least bytes and FLOPs of the kernel, for any provider.

    error_ratio: RMS error against fp64, over that of PyTorch at the same precision. reason: why there is no figure.
    """
    text, environment = io.StringIO(), {name: result["environment"].get(name) for name in CONDITIONS}
    writer = csv.DictWriter(text, HEADS, restval="", lineterminator="\n")
    writer.writeheader()
    timings, ratios = items(result, "timings"), all_passed(result, "accuracy")
    for stage in ("timings", "baselines"):
        missing = {name: {"status": "not run", "reason": why} for name, why in left_out(result, stage).items()}
        for name, found in (items(result, stage) | missing).items():
            kernel, workload, *provider = name.split("/")
            ours = timings.get(f"{kernel}/{workload}", {})
            dtype = ours.get("dtype", "bfloat16")
            row: dict[str, Any] = {"kernel": kernel, "workload": workload, "dtype": dtype, **environment}
            row |= {"provider": provider[0] if provider else "triton", "status": found["status"]}
            row |= {name: found[name] for name in FIGURES if name in found}
            if provider and "median_us" in found and "bytes" in ours:
                row["gb_per_s"] = round(ours["bytes"] / found["median_us"] / 1e3, 2)
                row["tflop_per_s"] = round(ours["flops"] / found["median_us"] / 1e6, 3)
            checked = found if provider else ratios.get(f"{kernel}/{workload}/{dtype}", {})
            row |= {"error_ratio": checked.get("ratio", ""), "reason": found.get("error", found.get("reason", ""))}
            writer.writerow(row)
    return text.getvalue()
