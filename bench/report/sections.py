"""What the report says of one run, section by section. How it looks is the template's."""

from collections.abc import Callable

from zonos2_triton.bench.report.compare import SIGNIFICANT, Comparison, Row
from zonos2_triton.bench.report.frame_sections import frames, stages, whole
from zonos2_triton.bench.report.host_section import hosts
from zonos2_triton.bench.report.kernel_sections import errors, kernels, rooflines, vocoder
from zonos2_triton.bench.report.page import NONE, Section, Table, number
from zonos2_triton.bench.specs.performance_targets import CARD, CHECKS, GOALS, REPETITIONS
from zonos2_triton.bench.suite.results import Result, items, left_out, roof

CONDITIONS = {
    "card": "card", "arch": "architecture", "memory_gib": "memory, GiB", "multiprocessors": "multiprocessors",
    "l2_bytes": "last cache, bytes", "driver": "driver", "clock_mhz": "clock when the run began, MHz",
    "most_mhz": "highest clock, MHz", "memory_clock_mhz": "memory clock when the run began, MHz",
    "most_memory_mhz": "highest memory clock, MHz", "power_limit_w": "power limit, W",
    "power_w": "power when the run began, W", "temperature_c": "temperature when the run began, °C",
    "torch": "torch", "cuda": "CUDA", "triton": "Triton", "python": "Python", "platform": "platform",
    "commit": "commit", "sources": "hash of the sources", "date": "date", "seed": "seed of the inputs",
}  # fmt: skip


Maker = Callable[[Result, str], Section]


def sections(result: Result, prefix: str) -> list[Section]:
    """Of one run; prefix: of ids, this run's alone on the page."""
    makers: list[Maker] = [
        conditions, correctness, goals, frames, stages, whole, vocoder, hosts, rooflines, kernels, errors,
    ]  # fmt: skip
    return [maker(result, prefix) for maker in makers]


def conditions(result: Result, prefix: str) -> Section:
    told = result["environment"]
    rows = [(label, _said(told[key])) for key, label in CONDITIONS.items() if told.get(key) is not None]
    copy, product = roof(result)
    rows.append(("copy bandwidth measured, GB/s", number(copy)))
    rows.append(("matrix rate measured in bf16, TFLOP/s", number(product)))
    return Section(
        f"{prefix}-conditions", "Conditions", tables=[Table("What was measured on", ("what", "value"), rows)]
    )


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def correctness(result: Result, prefix: str) -> Section:
    rows, failed, total = [], [], 0
    for part in result["parts"]:
        found = items(result, part)
        counts = [
            sum(each["status"] == status for each in found.values()) for status in ("passed", "failed", "withheld")
        ]
        rows.append((part, *map(str, (*counts, len(left_out(result, part))))))
        failed += [f"{part}: {name}: {each['error']}" for name, each in found.items() if each["status"] == "failed"]
        total += len(found) if part in CHECKS else 0
    wrong = sum(each["status"] != "passed" for part in CHECKS for each in items(result, part).values())
    if not total:
        verdict = "No check was run: nothing here is known to be right."
    elif wrong:
        verdict = f"{wrong} of {total} checks did not pass."
    else:
        verdict = f"All {total} checks that were run passed."
    skipped = sum(len(left_out(result, part)) for part in CHECKS)
    verdict += f" {skipped} were not run." if skipped else ""
    tables = [Table("Items by part", ("part", "passed", "failed", "withheld", "not run"), rows)] if rows else []
    return Section(f"{prefix}-correctness", "Correctness", tables=tables, problems=failed, measured=bool(total),
                   verdict=verdict)  # fmt: skip


def goals(result: Result, prefix: str) -> Section:
    rows = []
    for goal in GOALS:
        found, verdict = goal.find(result), goal.verdict(result)
        hidden = found is None or result["environment"]["rehearsal"]
        rows.append((goal.what, goal.text, NONE if hidden or found is None else number(found.value), verdict))
    text = (
        f"The goals are for an {CARD} and bf16. A figure counts when it is the median of {REPETITIONS} repetitions or "
        "more, and every check of the run passed."
    )
    table = Table("Goals", ("figure", "goal", "measured", "verdict"), rows)
    return Section(f"{prefix}-goals", "Goals", [text], [table])


def comparison(found: Comparison, name: str) -> Section:
    """Of an earlier run with this one."""
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same"))
    text = (
        f"{len(found.rows)} items were measured in both: {counts}. Slower or faster: more than "
        f"{100 * found.threshold:g} % apart, and p\u00a0<\u00a0{SIGNIFICANT} by a Mann-Whitney U test, adjusted by "
        "Holm for their number. Samples of one run share its clocks, so that a run may differ from another of the same "
        "code."
    )
    heads = ("item", "verdict", "before", "after", "change", "95 %, from", "to", "p", "note")
    ordered = sorted(found.rows, key=lambda row: -abs(row.ratio - 1))
    moved = [_compared(row) for row in ordered if row.verdict != "same"]
    rest = [_compared(row) for row in ordered if row.verdict == "same"]
    said = {"not the same": found.warnings, "failing": found.failing, "passes again": found.recovered,
            "no longer measured": found.vanished}  # fmt: skip
    problems = [f"{what}: {each}" for what, listed in said.items() for each in listed]
    return Section(name, f"From {found.before} to {found.after}", [text],
                   [Table.of("Slower or faster", heads, moved)] if moved else (), problems=problems,
                   folded=[Table.of("The same", heads, rest)] if rest else ())  # fmt: skip


def _compared(row: Row) -> tuple[str, ...]:
    low, change, high = (f"{100 * (ratio - 1):+.1f} %" for ratio in (row.low, row.ratio, row.high))
    unit = "µs" if row.unit == "us" else row.unit
    return (row.name, row.verdict, f"{number(row.before)} {unit}", f"{number(row.after)} {unit}", change, low, high,
            f"{row.p:.2g}", row.note)  # fmt: skip
