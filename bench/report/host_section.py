"""The section of the report on other people's programs: before and after."""

from zonos2_triton.bench.report.page import Section, Table, milliseconds, number, problems, spread
from zonos2_triton.bench.suite.results import Result, all_passed

ABOUT = (
    "Before and after accelerate(), called as its users call it: launched by the host, no graph, random weights. The "
    "error is the largest difference over the largest magnitude of the original."
)


def hosts(result: Result, prefix: str) -> Section:
    found = all_passed(result, "hosts")
    tables = [
        Table.of(
            "Swapped in place",
            ("host", "work", "rows × frames", "before, ms", "after, ms", "20 to 80 %, ms", "×", "largest error"),
            [(each["host"], name.partition("/")[2], f"{each['rows']} × {each['frames']}",
              milliseconds(each["before"]["median_us"]), milliseconds(each["after"]["median_us"]),
              spread(each["after"], per=1e3), f"{each['speed_up']:.2f}", f"{max(each['errors'].values()):.1e}")
             for name, each in found.items() if "after" in each],
        ),
        Table.of(
            "The offline front, by the host's clock",
            ("prompts at once", "frames of each", "median, ms", "20 to 80 %, ms", "seconds of audio per second"),
            [(str(each["prompts"]), str(each["frames"]), number(each["median_ms"]), spread(each, "ms"),
              number(each["audio_s_per_s"]))
             for each in found.values() if "prompts" in each],
        ),
    ]  # fmt: skip
    filled = [table for table in tables if table.rows]
    return Section(f"{prefix}-hosts", "Drop-in", [ABOUT] if filled else (), filled,
                   problems=[*problems(result, "hosts")], measured=bool(filled))  # fmt: skip
