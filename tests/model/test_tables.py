"""Tables that fit the terminal and cut nothing."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from zonos2_triton.bench.baselines.providers import ALL
from zonos2_triton.bench.compiler import snapshot
from zonos2_triton.bench.compiler.expected import Row
from zonos2_triton.bench.planner import plan
from zonos2_triton.bench.specs.gpus import find_gpu
from zonos2_triton.bench.suite import gpu
from zonos2_triton.bench.suite.recorder import Recorder
from zonos2_triton.bench.timing import range_times
from zonos2_triton.bench.timing.range_times import Node
from zonos2_triton.model import doctor
from zonos2_triton.model.integrations.report import Patched, Report, Skipped
from zonos2_triton.model.tables import fitted, numeric, terminal_width, text_row, text_table

ROWS = [
    ("name", "time us", "why"), ("one", "1.5", "a reason of some words that goes on and on"),
    ("another", "1,200.0", "/a/path/without/any/space/that/is/long"),
]  # fmt: skip


def squeezed(text):
    return "".join(text.split())


def test_as_wide_as_it_must_be_where_there_is_no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() == 0
    assert text_table(ROWS).splitlines() == [
        "name     time us  why",
        "one          1.5  a reason of some words that goes on and on",
        "another  1,200.0  /a/path/without/any/space/that/is/long",
    ]


COLUMNS = [("kernel", *(f"column {i}" for i in range(5))), ("rotary", *(f"{1000 + i}.0" for i in range(5)))]
ERROR = "error 1.00 of plain PyTorch's"
LAID_OUT = {  # in so many columns
    "text goes on in its cell": (40, lambda: text_table(ROWS), """\
name     time us  why
one          1.5  a reason of some words
                  that goes on and on
another  1,200.0  /a/path/without/any/sp
                  ace/that/is/long"""),
    "columns without room follow below": (30, lambda: text_table(COLUMNS), """\
kernel  column  column  column
             0       1       2
rotary  1000.0  1001.0  1002.0

kernel  column 3  column 4
rotary    1003.0    1004.0"""),
    "without heads all is text": (30, lambda: text_table(
        [("torch", "2.15.0"), ("backend", "needs the interpreter here")], heads=False, indent=2, least=[8]), """\
  torch     2.15.0
  backend   needs the
            interpreter here"""),
    "a row before the others are known": (30, lambda: text_row(("rotary", "tiny", ERROR), [8, 6]), """\
rotary    tiny    error 1.00
                  of plain
                  PyTorch's"""),
    "wide characters take two places": (80, lambda: text_table([("name", "n"), ("日本", "1"), ("é", "22")]), """\
name   n
日本   1
é     22"""),
    "lines of a cell stay lines": (80, lambda: text_table([("a", "b"), ("x", "one\ntwo")]), """\
a  b
x  one
   two"""),
    "prose goes on in more lines": (20, lambda: fitted("one two three four five\n  six seven eight nine\n\nend"), """\
one two three four
  five
  six seven eight
    nine

end"""),
}  # fmt: skip


@pytest.mark.parametrize("name", LAID_OUT)
def test_laid_out(name, monkeypatch):
    width, made, text = LAID_OUT[name]
    monkeypatch.setenv("COLUMNS", str(width))
    assert made() == text


def test_a_name_in_a_row_stays_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    said = text_row(("conv_transpose1d_snake", "stream-1-chunk-16", ERROR), [22, 17]).splitlines()
    assert max(map(len, said)) <= 40
    assert sum(line.count("conv_transpo") for line in said) == 1


def test_numeric():
    assert numeric(["1.5 ms", "", "–", "+3"])
    assert not numeric(["1", "none"])


def timings(tmp_path):
    recorder = Recorder(tmp_path / "x.json", {"stages": {}})
    figures = dict.fromkeys(gpu.COLUMNS.values(), 123456.7) | {"status": "passed"}
    for name in ("prefill_attention/prefill-2048", "residual_unit/streams-64"):
        recorder.keep("timings", name, figures)
        for other in ALL:
            recorder.keep("baselines", f"{name}/{other.name}", {"status": "passed", "median_us": 65432.1})
    return gpu.table(recorder)


def ranges(_):
    root = Node()
    root.child("model/generate").child("kernel/conv_transpose1d_snake").count = 3
    return range_times.table(range_times.rows(root, {}, range_times.Roofline(1.0, None)))


def swapped(_):
    moe = Patched("experts", "layers.*.feed_forward", 24, 1e-3, 1e-2)
    left = Skipped("attention", "its cache is of another kind: PageFirst, of pages of 16 rows")
    return str(Report("zonos2", "0.1", "1", "triton", [moe], [left]))


TABLES = {
    "overview": lambda _: plan.as_text(plan.overview()),
    "plan": lambda _: plan.as_text(plan.plan(find_gpu("rtx4080"))),
    "gpu": lambda _: gpu.listing(["accuracy", "timings"], False),
    "no gpu": lambda _: gpu.listing(["accuracy", "timings"], False, "torch finds no device"),
    "timings": timings,
    "ranges": ranges,
    "swapped": swapped,
    "compiled": lambda _: snapshot.table(
        [Row("rotary", "_rotary_kernel", "decode-B1", "sm_90", ("spills: 3", "no 16-byte loads: 3 others"))]
    ),
    "doctor": lambda _: doctor.as_text(doctor.diagnose()),
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", TABLES)
def test_what_commands_print_fits_and_loses_nothing(name, width, monkeypatch, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = TABLES[name](tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    fitted = TABLES[name](tmp_path)
    assert max(map(len, fitted.splitlines())) <= width
    # Cells that go on in another line, and columns that follow below, keep every character.
    assert not {*squeezed(whole)} - {*squeezed(fitted)}
    assert len(squeezed(fitted)) >= len(squeezed(whole))
    words = {word for word in whole.split() if len(word) < 12}
    assert words <= {*fitted.split()}


def test_on_a_terminal_its_own_width_counts():
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    program = f"from zonos2_triton.model.tables import text_table; print(text_table({[*ROWS, ('x', '1', 'Q' * 90)]!r}))"
    subprocess.run([sys.executable, "-c", program], stdout=follower, env=environment, check=True)
    os.close(follower)
    said = os.read(leader, 10000).decode()
    os.close(leader)
    lines = said.splitlines()
    assert (max(map(len, lines)), said.count("Q")) == (50, 90)
