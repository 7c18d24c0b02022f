"""The report: every section, alone on its page, readable without colour, script or sight; and what it refuses."""

import copy
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from zonos2_triton.bench.report.page import Table, number
from zonos2_triton.bench.report.report import html
from zonos2_triton.bench.report.waterfall import launches, waterfall
from zonos2_triton.bench.specs.frame_cost import frame_cost
from zonos2_triton.bench.specs.performance_targets import GOALS
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.device_checks import whole_model
from zonos2_triton.model import cli

SAMPLE = Path(__file__).parent / "results" / "sample.json"
SECTIONS = ("Conditions", "Correctness", "Goals", "Frames", "Where the time of a frame goes", "From text to sound",
            "Vocoder", "Drop-in", "Roofline", "Kernels", "Errors")  # fmt: skip
VOID = {"meta", "link", "br", "path", "use", "rect"}
HOSTILE = "</td><script>alert('1 & 2')</script><img src=\"x\"> $\\frac{1}{0}$ {{ 7*7 }}"


@pytest.fixture(scope="module")
def whole():
    return results.load(SAMPLE)


@pytest.fixture
def sample(whole):
    return copy.deepcopy(whole)


@pytest.fixture
def small(sample):
    """With few kernels and one frame, which is quick to draw."""
    parts, few = sample["parts"], ("router/", "prefill_attention/")
    timings = parts["timings"]["items"].items()
    parts["timings"]["items"] = {name: found for name, found in timings if name.startswith(few)}
    parts["frames"]["items"] = {"B1": parts["frames"]["items"]["B1"]}
    return sample


@pytest.fixture(scope="module")
def made(whole):
    return Page(html([("sample.json", whole)]))


class Page(HTMLParser):
    """What is on a page; AssertionError: an element that is not closed, or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.open, self.headings, self.ids = text, [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    def of(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def section(self, title):
        """The text from its heading to the next section."""
        return self.text.split(f">{title}</h3>")[1].split("<section")[0]


def main(arguments):
    return cli.main(["report", *arguments])


def test_every_section_is_there_in_order(made):
    assert [title for level, title in made.headings if level == 3] == [*SECTIONS]
    assert "Not measured in this run" not in made.text
    for title in ("Frames", "Where the time of a frame goes", "Roofline"):
        assert made.section(title).count("<svg") == 2


def test_the_page_stands_alone(made):
    assert not made.of("script")
    assert not made.of("img")
    for tag, attributes, _ in made.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert attributes.get(name, "#").startswith("#") or (tag, attributes[name]) == ("link", "data:,")
    assert not re.search(r"@import|url\((?!#)", made.text)
    without_names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", made.text)
    assert "http" not in without_names
    assert not [name for _, attributes, _ in made.elements for name in attributes if name.startswith("on")]


def test_ids_are_unique_and_links_lead_somewhere(made):
    assert len(set(made.ids)) == len(made.ids)
    links = [a[name] for _, a, _ in made.elements for name in ("href", "xlink:href") if name in a]
    targets = [link[1:] for link in links if link.startswith("#")]
    targets += re.findall(r"url\(#([^)]*)\)", made.text)
    named = [a[name] for _, a, _ in made.elements for name in ("aria-labelledby",) if name in a]
    assert {*targets, *(one for names in named for one in names.split())} <= {*made.ids}


def test_headings_go_down_one_at_a_time(made):
    levels = [level for level, _ in made.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_it_can_be_read_aloud_and_by_keyboard(made):
    assert made.of("html")[0]["lang"] == "en"
    assert len(made.of("main")) == 1
    assert made.of("a")[0] == {"class": "skip", "href": "#main"}
    for attributes in made.of("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-labelledby"]
    assert len(made.of("title")) == len(made.of("svg")) + 1
    assert len(made.of("desc")) == len(made.of("svg"))
    assert len(made.of("figure")) == len(made.of("svg")) == made.text.count("The figures of this plot")
    assert len(made.of("caption")) == len(made.of("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in made.of("th"))
    scrolled = [a for a in made.of("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "group" and a["aria-label"] for a in scrolled)
    assert len(scrolled) == len(made.of("table")) + len(made.of("svg"))


def test_text_of_the_plots_is_text_in_the_colours_of_the_page(made):
    drawn = "".join(re.findall(r"<svg.*?</svg>", made.text, re.S))
    assert ">decode_attention</text>" in drawn
    assert ">launches and gaps</text>" in drawn
    assert ">torch.compile, CUDA graph</text>" in drawn
    assert not re.search(r"#0102\d\d|mathdefault|DejaVu", drawn)
    assert "currentColor" in drawn


def test_figures_of_the_file_are_on_the_page(made, whole):
    timing = whole["parts"]["timings"]["items"]["experts/decode-B1"]
    assert f">{number(timing['median_us'])}<" in made.section("Kernels")
    compiled = whole["parts"]["beside"]["items"]["experts/decode-B1/compiled"]
    assert f"(×{compiled['speed_up']:.2f})" in made.section("Kernels")
    kernels = whole["parts"]["kernels"]["items"]
    worst = max(f["ratio"] for name, f in kernels.items() if re.fullmatch("experts/.*/bfloat16", name))
    assert f">{worst:.3f}<" in made.section("Errors")
    frame = whole["parts"]["frames"]["items"]["B16"]
    assert f">{frame['median_us'] / 11609.977:.3f}<" in made.section("Frames")
    assert f">{number(whole['parts']['whole']['items']['first-audio/1']['sixteen_frames_ms'])}<" in made.section(
        "From text to sound"
    )
    plain = whole["parts"]["baseline"]["items"]["B16"]
    assert f"(×{plain['speed_up']:.2f})" in made.section("Frames")
    prompt = whole["parts"]["baseline"]["items"]["prefill-2048"]
    assert f"(×{prompt['speed_up']:.2f})" in made.section("From text to sound")
    assert "flashinfer: flashinfer is not installed" in made.section("Kernels")
    assert "not run: no time left (2): experts/decode-B256; head/decode-B256" in made.section("Kernels")
    assert "All 114 checks that were run passed. 2 were not run." in made.section("Correctness")


def test_a_time_beside_one_that_ours_lacks_has_no_factor(small):
    for part in ("baseline", "beside"):
        for each in small["parts"].get(part, {"items": {}})["items"].values():
            each["speed_up"] = None
    results.check(small)
    assert not re.search(r"\(×\d", Page(html([("a.json", small)])).section("Frames"))


def test_the_same_file_makes_the_same_bytes(made, whole):
    assert html([("sample.json", whole)]) == made.text


def test_what_was_not_run_says_so(sample):
    sample["parts"] = {"graph": {"items": {}, "not_run": {"decode step": "no time left"}}}
    page = Page(html([("x.json", sample)]))
    for title in (*SECTIONS[3:], "Correctness"):
        assert "Not measured in this run." in page.section(title)
    assert "No check was run" in page.section("Correctness")
    assert set(re.findall(r"not yet measured", page.section("Goals"))) == {"not yet measured"}
    assert not page.of("svg")


def test_failures_are_named(small):
    parts = small["parts"]
    parts["kernels"]["items"]["router/decode-B1/bfloat16"] = {
        "status": "failed",
        "error": "Mismatch: off by 3",
        "seconds": 1,
    }
    parts["timings"]["items"]["router/decode-B1"] = {"status": "withheld", "reason": "router/decode-B1/bfloat16 failed"}
    parts["frames"]["items"] = {"B1": {"status": "withheld", "reason": "router failed"}}
    page = Page(html([("x.json", small)]))
    assert "1 of 114 checks did not pass." in page.section("Correctness")
    assert "kernels: router/decode-B1/bfloat16: Mismatch: off by 3" in page.section("Correctness")
    assert "router/decode-B1: withheld: router/decode-B1/bfloat16 failed" in page.section("Kernels")
    assert "B1: withheld: router failed" in page.section("Frames")
    assert "Not measured in this run" in page.section("Where the time of a frame goes")


def test_a_rehearsal_is_loud_about_it(small):
    small["environment"] |= {"rehearsal": True, "card": "CPU rehearsal"}
    page = Page(html([("x.json", small)]))
    banners = [a for a in page.of("p") if a.get("class") == "banner"]
    assert len(banners) == 1
    assert "Rehearsal on a CPU: no figure here is of speed." in page.text
    assert page.section("Goals").count("not yet measured on a GPU") == len(GOALS)
    assert ">–<" in page.section("Goals")


def test_without_calibration_there_is_no_roof(small):
    del small["parts"]["calibration"]
    for found in small["parts"]["timings"]["items"].values():
        found |= {name: None for name in found if name.startswith("percent") or name == "floor_us"}
    for found in small["parts"]["frames"]["items"].values():
        found |= {"floor_us": None, "percent_of_floor": None}
    page = Page(html([("x.json", small)]))
    assert "Roofs, none is known." in page.section("Roofline")
    assert "of floor" not in page.section("Kernels")  # nothing stands in that column


def test_a_known_card_has_its_data_sheet_too(small):
    small["environment"]["card"] = "NVIDIA H200"
    assert "dashed: the card&#39;s data sheet" in Page(html([("x.json", small)])).section("Roofline")


def test_names_are_text_whatever_they_are(small):
    """Some come from compilers, libraries and drivers."""
    small["environment"] |= {"card": HOSTILE, "commit": HOSTILE, "platform": HOSTILE}
    small["parts"]["graph"]["items"]["decode step"] = {"status": "failed", "error": HOSTILE}
    timings = small["parts"]["timings"]["items"]
    timings["router/<b>$x_1$</b>".replace("/b", "b")] = copy.deepcopy(timings["router/decode-B1"])
    small["parts"]["beside"]["not_run"]["router/decode-B1/liger"] = HOSTILE
    small["parts"]["timings"]["not_run"][HOSTILE] = HOSTILE
    page = Page(html([(HOSTILE, small)]))
    assert not page.of("script")
    assert not page.of("img")
    assert "{{ 7*7 }}" in page.text
    assert not page.of("b")
    assert "&lt;b&gt;$x_1$" in page.section("Roofline")


# Several files.


def later(result, **environment):
    made = copy.deepcopy(result)
    made["environment"] |= {"date": "2026-02-02T00:00:00+00:00", "commit": "abcdefabcdef", **environment}
    return made


def test_runs_of_one_card_are_compared(small):
    slower = later(small)
    found = slower["parts"]["timings"]["items"]["router/decode-B1"]
    for key in ("median_us", "low_us", "high_us"):
        found[key] *= 1.2
    found["samples_us"] = [1.2 * value for value in found["samples_us"]]
    page = Page(html([("new.json", slower), ("old.json", small)]))  # whatever their order
    assert [title for level, title in page.headings if level == 2] == ["Example card, commit abcdefabcdef, 2026-02-02"]
    section = page.section("From old.json to new.json")
    assert "1 slower, 0 faster" in section
    assert re.search(r">timings/router/decode-B1</th><td>slower</td>.*\+20\.0 %", section)


def test_cards_have_chapters(small):
    page = Page(html([("a.json", small), ("b.json", later(small, card="Another card"))]))
    assert [title for level, title in page.headings if level == 2] == [
        "Example card, commit 0123456789ab, 2026-01-02", "Another card, commit abcdefabcdef, 2026-02-02"]  # fmt: skip
    assert len(set(page.ids)) == len(page.ids)
    assert "From " not in [title[:5] for level, title in page.headings if level == 3 and title.endswith(".json")]


# Goals.


@pytest.fixture
def h200(sample):
    sample["environment"]["card"] = "NVIDIA H200"
    return sample


def verdict(result, start):
    return next(goal for goal in GOALS if goal.what.startswith(start)).verdict(result)


def test_goals_are_met_or_not(h200):
    frame = h200["parts"]["frames"]["items"]["B1"]
    frame["median_us"] = 520.0
    assert verdict(h200, "frame, 1 stream, 1,000") == "met"
    frame["median_us"] = 521.0
    assert verdict(h200, "frame, 1 stream, 1,000") == "not met"
    for found in h200["parts"]["vocoder"]["items"].values():
        found["samples_us"] *= 2
    assert verdict(h200, "vocoder, a 10 s clip, against") == "met"
    h200["parts"]["vocoder"]["items"]["clips-1/float16"]["compiled"]["speed_up"] = 1.99  # the worse of both counts
    assert verdict(h200, "vocoder, a 10 s clip, against") == "not met"
    assert verdict(h200, "peak memory") == "met"


def test_goals_without_a_figure(h200):
    assert verdict(h200, "frame, 1 stream, 8-bit") == "not yet measured"
    del h200["parts"]["frames"]["items"]["B1"]
    assert verdict(h200, "frame, 1 stream, 1,000") == "not yet measured"
    h200["parts"]["vocoder"]["items"]["clips-1/float16"]["compiled"] = {"not_timed": "no time left"}
    assert verdict(h200, "vocoder, a 10 s clip, against") == "not yet measured"
    h200["parts"]["whole"]["items"]["memory"]["peak_bytes"] = None
    assert verdict(h200, "peak memory") == "not yet measured"


def test_what_does_not_count(h200):
    frame = h200["parts"]["frames"]["items"]["B1"]
    frame["median_us"] = 500.0
    frame["samples_us"] = frame["samples_us"][:7]
    assert verdict(h200, "frame, 1 stream, 1,000") == "does not count: 7 repetitions, of 20"
    frame["samples_us"] *= 3
    h200["parts"]["invariance"]["items"]["router/pieces"] = {"status": "failed", "error": "off"}
    assert verdict(h200, "frame, 1 stream, 1,000") == "does not count: checks failed"
    h200["environment"]["card"] = "NVIDIA H100 80GB HBM3"
    assert verdict(h200, "frame, 1 stream, 1,000") == "another card than the goal's, NVIDIA H200"


def test_attention_counts_by_its_worst(h200):
    assert verdict(h200, "prefill attention") == "met"
    h200["parts"]["beside"]["items"]["prefill_attention/prefill-2048/flash-attn"]["speed_up"] = 0.7
    assert verdict(h200, "prefill attention") == "not met"


# Where the time goes.


def test_stages_are_those_of_the_cost_model():
    config = whole_model()
    assert launches(config, 1).keys() == frame_cost(config, 1, 1000).keys()
    counts = {name: sum(count for _, count in timed) for name, timed in launches(config, 64).items()}
    assert counts["qkv_projection"] == counts["decode_attention"] == 28
    assert counts["router"] == counts["experts"] == 24
    assert counts["experts (dense)"] == 4


def test_stages_and_the_rest_make_the_frame(sample):
    timings, frame = sample["parts"]["timings"]["items"], sample["parts"]["frames"]["items"]["B1"]
    fall = waterfall(sample, 1)
    by_name = {stage.name: stage for stage in fall.stages}
    assert by_name["experts"].microseconds == pytest.approx(
        23 * timings["experts/decode-B1"]["median_us"] + timings["experts/decode-top2"]["median_us"]
    )
    assert fall.rest_us + sum(stage.microseconds for stage in fall.stages) == pytest.approx(frame["median_us"])
    # The floors of the stages come to that of the frame, for each is bound by bytes.
    assert sum(stage.floor_us for stage in fall.stages) == pytest.approx(frame["floor_us"], rel=0.02)


def test_a_stage_without_a_time_leaves_no_waterfall(sample):
    del sample["parts"]["timings"]["items"]["head/decode-B1"]
    assert waterfall(sample, 1) is None
    assert waterfall(sample, 7) is None


def test_a_frame_shorter_than_its_stages_has_a_rest_below_zero(sample):
    sample["parts"]["frames"]["items"]["B1"] |= {"median_us": 600.0, "low_us": 590.0, "high_us": 610.0}
    assert waterfall(sample, 1).rest_us < 0
    assert "−" in Page(html([("x.json", sample)])).section("Where the time of a frame goes").replace("-", "−")


# Tables.


def test_columns_with_nothing_go_and_numbers_are_flush_right():
    table = Table.of("t", ("a", "b", "c", "d"), [("x", "1.5 (×2)", "–", "word"), ("y", "–", "–", "")])
    assert table.heads == ["a", "b", "d"]
    assert table.rows[0] == ["x", "1.5 (×2)", "word"]
    assert table.numeric == [False, True, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (0.1234, "0.123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


# The command.


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return written


def test_the_command_writes_the_page(tmp_path, capsys, made):
    assert main([str(SAMPLE), "-o", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == made.text
    assert capsys.readouterr().out.strip().endswith("x.html")
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "in.json is no JSON"),
        ('{"schema": 1}', "in.json has schema 1; this version reads 2"),
        ('{"schema": 2}', "in.json lacks environment, parts"),
        (None, "in.json"),
    ],
)
def test_bad_files(write, tmp_path, capsys, content, said):
    if content is not None:
        write("in.json", content)
    out = write("x.html", "the page before")
    assert main([str(tmp_path / "in.json"), "-o", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "the page before"


def test_a_result_without_the_form(write, sample, capsys, tmp_path):
    sample["parts"]["timings"]["items"]["router/decode-B1"]["cache"] = "cold"
    assert main([str(write("in.json", sample)), "-o", str(tmp_path / "x.html")]) == 2
    assert "in.json: at parts/timings/items/router/decode-B1/cache: 'cold'" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_places_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", tmp_path / "missing" / "x.html"):
        assert main([str(SAMPLE), "-o", str(out)]) == 2
        assert f"cannot write {out}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_named_once_and_not_overwritten(write, sample, capsys):
    path = write("in.json", sample)
    assert main([str(path), str(path)]) == 2
    assert "named once" in capsys.readouterr().err
    assert main([str(path), "-o", str(path)]) == 2
    assert "--out must not be one of the result files" in capsys.readouterr().err
    assert json.loads(path.read_text(encoding="utf-8")) == sample


def test_a_failure_while_drawing_leaves_nothing(monkeypatch, tmp_path, capsys):
    def failing(*_):
        raise ValueError("no ink")

    monkeypatch.setattr("zonos2_triton.bench.report.report.html", failing)
    assert main([str(SAMPLE), "-o", str(tmp_path / "x.html")]) == 2
    assert "no ink" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("library", ["jinja2", "matplotlib", "jsonschema"])
def test_what_a_report_needs_is_named(monkeypatch, tmp_path, capsys, library):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    assert main([str(SAMPLE), "-o", str(tmp_path / "x.html")]) == 2
    assert f"{library}: pip install 'zonos2-triton[report]'" in capsys.readouterr().err
