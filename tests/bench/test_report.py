"""The report: every section, alone on its page; what it refuses. The tables of the README."""

import copy
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest

from zonos2_triton.bench.figures import number
from zonos2_triton.bench.proof.mutants import MUTANTS
from zonos2_triton.bench.report import tables
from zonos2_triton.bench.report.report import html
from zonos2_triton.bench.report.tables import ROOT, TABLES, kernel_table, with_tables
from zonos2_triton.bench.specs.performance_targets import GOALS, UNMEASURED
from zonos2_triton.bench.suite import results
from zonos2_triton.model import cli

SAMPLE = Path(__file__).parent / "results" / "sample.json"
SECTIONS = ("Conditions", "Correctness", "Goals", "Frames", "Launches", "From text to sound", "Vocoder", "Drop-in",
            "Kernels", "Errors", "Roofline")  # fmt: skip
VOID = {"meta", "link", "img"}
HOSTILE = "</td><script>alert('1 & 2')</script><b> $\\frac{1}{0}$ {{ 7*7 }}"


@pytest.fixture(scope="module")
def whole():
    return results.load(SAMPLE)


@pytest.fixture
def sample(whole):
    """With few timings and one frame, which is quick to draw."""
    content, few = copy.deepcopy(whole), re.compile("moe_router/|prefill_attention/|B1$|memory$|first-audio/1$")
    for stage in ("timings", "frames", "end_to_end"):
        found = content["stages"][stage]["items"].items()
        content["stages"][stage]["items"] = {name: each for name, each in found if few.match(name)}
    return content


@pytest.fixture(scope="module")
def made(whole):
    return Page(html([("sample.json", whole)]))


class Page(HTMLParser):
    """The elements of a page. AssertionError: one is not closed, or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.open = text, [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def titles(self, level):
        return re.findall(rf"<h{level}[^>]*>([^<]*)</h{level}>", self.text)

    def section(self, title):
        """The text from its heading to the next section, without pictures."""
        return re.sub(r"<img[^>]*>", "", self.text.split(f">{title}</h3>")[1].split("<section")[0])

    def drawn(self):
        """The pictures."""
        sources = [picture["src"].partition("base64,")[2] for picture in self.of("img")]
        return [b64decode(source).decode() for source in sources]


def test_every_section_is_there_in_order(made):
    assert made.titles(3) == [*SECTIONS]
    assert len(made.titles(1)) == 1
    assert made.titles(2) == ["Example GPU, commit 0123456789ab, 2026-01-02"]
    assert "Not measured in this run" not in made.text


def test_the_page_stands_alone_and_can_be_read_aloud(made):
    assert not made.of("script")
    for tag, attributes in made.elements:
        links = {name: attributes[name] for name in ("src", "href", "action", "srcset") if name in attributes}
        assert all(link.startswith(("#", "data:")) for link in links.values()), tag
    assert not re.search(r"@import|url\(|https?:", made.text)
    ids = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len({*ids}) == len(ids)
    assert {link["href"] for link in made.of("a")} == {f"#{name}" for name in ids}
    assert made.of("html")[0]["lang"] == "en"
    assert len(made.of("caption")) == len(made.of("table"))
    assert all(attributes["scope"] in ("col", "row") for attributes in made.of("th"))


def test_plots_are_pictures_with_text(made, sample):
    [drawn] = made.drawn()
    assert all(f">{kernel}</text>" in drawn for kernel in ("decode_attention", "residual_unit"))
    assert all(picture["alt"] for picture in made.of("img"))
    assert "mathdefault" not in drawn
    sample["environment"]["gpu"] = "NVIDIA H200"  # a known GPU has its data sheet too
    [known] = Page(html([("sample.json", sample)])).drawn()
    assert (drawn.count("stroke-dasharray"), known.count("stroke-dasharray")) == (0, 1)


def test_figures_of_the_file_are_on_the_page(made, whole):
    stages = {stage: held["items"] for stage, held in whole["stages"].items()}
    kernels, frames = made.section("Kernels"), made.section("Frames")
    assert f">{number(stages['timings']['moe_experts/decode-B1']['median_us'])}<" in kernels
    assert f"(×{stages['baselines']['moe_experts/decode-B1/compiled']['speed_up']:.2f})" in kernels
    ratio = stages["accuracy"]["moe_experts/decode-B1/bfloat16"]["ratio"]
    assert re.search(rf">moe_experts/decode-B1/bfloat16</th>.*>{number(ratio)}<", made.section("Errors"))
    assert f">{number(stages['frames']['B16']['median_us'] / 11609.977)}<" in frames
    launches = made.section("Launches")
    assert f">{number(stages['launches']['moe_router/decode-B1']['estimate_us'])}<" in launches
    assert re.search(r">GAP_US</th><td[^>]*>1.10</td><td[^>]*>0.930<", launches)
    assert "6.3 % RMS, by those assumed 14.2 %" in launches
    assert f"(×{stages['torch_frame']['B16']['speed_up']:.2f})" in frames
    whole_text = made.section("From text to sound")
    assert f">{number(stages['end_to_end']['first-audio/1']['sixteen_frames_ms'])}<" in whole_text
    assert f"(×{stages['torch_frame']['prefill-2048']['speed_up']:.2f})" in whole_text
    assert ">4.2e-03<" in made.section("Drop-in")
    assert "not run: flashinfer is not installed (10): decode_attention/decode-B1-first/flashinfer;" in kernels
    assert "not run: no time left (2): moe_experts/decode-B256; codebook_head/decode-B256" in kernels
    assert "110 of 110 checks passed; 2 were not run." in made.section("Correctness")


def test_what_was_not_run_says_so(sample):
    sample["stages"] = {"cuda_graph": {"items": {}, "not_run": {"decode step": "no time left"}}}
    page = Page(html([("x.json", sample)]))
    for title in (*SECTIONS[3:], "Correctness"):
        assert "Not measured in this run." in page.section(title)
    assert "0 of 0 checks passed; 1 were not run." in page.section("Correctness")
    assert page.section("Goals").count("not yet measured") == len(GOALS)
    assert not page.of("img")


def test_failures_are_named(sample):
    stages, failed = sample["stages"], {"status": "failed", "error": "Mismatch: off by 3", "seconds": 1}
    stages["accuracy"]["items"]["moe_router/decode-B1/bfloat16"] = failed
    withheld = {"status": "withheld", "reason": "moe_router/decode-B1/bfloat16 failed"}
    stages["timings"]["items"]["moe_router/decode-B1"] = withheld
    stages["frames"]["items"] = {"B1": {"status": "withheld", "reason": "router failed"}}
    page = Page(html([("x.json", sample)]))
    assert "109 of 110 checks passed" in page.section("Correctness")
    assert "accuracy: moe_router/decode-B1/bfloat16: failed: Mismatch: off by 3" in page.section("Correctness")
    assert "moe_router/decode-B1: withheld: moe_router/decode-B1/bfloat16 failed" in page.section("Kernels")
    assert "B1: withheld: router failed" in page.section("Frames")


def test_a_smoke_run_is_loud_about_it(sample):
    sample["environment"] |= {"smoke": True, "gpu": "CPU smoke run"}
    page = Page(html([("x.json", sample)]))
    assert [a["role"] for a in page.of("p") if a.get("class") == "banner"] == ["note"]
    assert page.section("Goals").count("not yet measured on a GPU") == len(GOALS)
    assert not re.search(r">\d", page.section("Goals"))


def test_names_are_text_whatever_they_are(sample):
    sample["environment"] |= {"gpu": HOSTILE, "commit": HOSTILE, "platform": HOSTILE}
    sample["stages"]["cuda_graph"]["items"]["decode step"] = {"status": "failed", "error": HOSTILE}
    timings = sample["stages"]["timings"]
    timings["items"]["<b>$x_1$<b>/decode-B1"] = timings["items"]["moe_router/decode-B1"]
    timings["not_run"][HOSTILE] = HOSTILE
    page = Page(html([(HOSTILE, sample)]))
    assert not page.of("script") + page.of("b")
    assert "{{ 7*7 }}" in page.text
    assert ">&lt;b&gt;$x_1$&lt;b&gt;</text>" in page.drawn()[0]


def test_runs_of_one_card_are_compared_and_cards_have_chapters(sample):
    slower, another = copy.deepcopy(sample), copy.deepcopy(sample)
    slower["environment"] |= {"date": "2026-02-02T00:00:00+00:00", "commit": "abcdefabcdef"}
    another["environment"]["gpu"] = "Another GPU"
    found = slower["stages"]["timings"]["items"]["moe_router/decode-B1"]
    found |= {"median_us": 1.2 * found["median_us"], "samples_us": [1.2 * value for value in found["samples_us"]]}
    page = Page(html([("new.json", slower), ("other.json", another), ("old.json", sample)]))  # whatever their order
    assert page.titles(2) == [
        "Example GPU, commit abcdefabcdef, 2026-02-02", "Another GPU, commit 0123456789ab, 2026-01-02"]  # fmt: skip
    assert [title for title in page.titles(3) if title.endswith(".json")] == ["From old.json to new.json"]
    section = page.section("From old.json to new.json")
    assert "1 slower, 0 faster" in section
    assert re.search(r">timings/moe_router/decode-B1</th><td>slower</td>.*\+20\.0 %", section)


# Goals.


def test_goals_count_by_their_worst_and_where_every_check_passed(sample):
    def verdicts(*starts):
        rows = [next(goal for goal in GOALS if goal.what.startswith(start)).row(sample) for start in starts]
        return [verdict or measured for _, _, measured, verdict in rows]

    frame, clip, memory, prefill = "frame, 1 stream, 1,000", "vocoder, a 10 s clip", "peak memory", "prefill attention"
    stages = {stage: held["items"] for stage, held in sample["stages"].items()}
    timed, sound = stages["frames"]["B1"], stages["vocoder"]["clips-1/float16"]
    for found in stages["vocoder"].values():
        found["samples_us"] *= 2
    sample["environment"]["gpu"] = "NVIDIA H200"
    timed["median_us"] = 521.0
    assert verdicts("frame, 1 stream, 8-bit", frame) == [UNMEASURED, "not met"]
    timed["median_us"] = 520.0
    assert verdicts(frame, clip, memory, prefill) == ["met"] * 4
    sound["compiled"]["speed_up"] = 1.99
    stages["baselines"]["prefill_attention/prefill-2048/flash-attn"]["speed_up"] = 0.7
    assert verdicts(clip, prefill) == ["not met"] * 2
    sound["compiled"] = {"not_timed": "no time left"}
    stages["end_to_end"]["memory"]["peak_bytes"] = None
    assert verdicts(clip, memory) == [UNMEASURED] * 2
    timed["samples_us"] = timed["samples_us"][:7]
    assert verdicts(frame) == ["does not count: 7 repetitions, of 20"]
    stages["invariance"]["moe_router/chunked_prefill"] = {"status": "failed", "error": "off"}
    assert verdicts(frame) == ["does not count: checks failed"]
    sample["environment"]["gpu"] = "NVIDIA H100 80GB HBM3"
    assert verdicts(frame) == ["another GPU than the goal's, NVIDIA H200"]
    del stages["frames"]["B1"]
    assert verdicts(frame) == [UNMEASURED]


# The tables of the READMEs.


@pytest.mark.parametrize("page", TABLES)
def test_a_page_holds_what_the_catalogue_the_gate_and_the_results_say(page):
    """Made by `python -m zonos2_triton.bench.report.tables`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_tables(page, text, results.newest()) == text


def test_a_column_without_figures_is_left_out(whole):
    heads = {name: kernel_table(result).splitlines()[0] for name, result in (("none", None), ("some", whole))}
    assert heads["none"] + " time |" == heads["some"]


def test_times_are_those_of_the_result(whole):
    sample = copy.deepcopy(whole)
    timed = sample["stages"]["timings"]["items"]["sample_codes/decode-B1"]

    def line():
        return next(line for line in kernel_table(sample).splitlines() if line.startswith("| [`sample_codes`]"))

    assert line().endswith(f"| {timed['median_us']:.1f} us |")
    assert f"gpu {sample['environment']['gpu']}, " in kernel_table(sample).splitlines()[-1]
    timed["status"] = "withheld"
    assert line().endswith("| – |")


def test_mutants_of_shared_code_count_once():
    pairs = [(mutant.file, mutant.pattern) for mutants in MUTANTS.values() for mutant in mutants]
    assert f" {len({*pairs})} mutants of the kernels" in tables.mutants(None)
    assert f" {len(pairs)} pairs" in tables.mutants(None)
    assert len({*pairs}) < len(pairs)


# The command.


@pytest.fixture
def report(tmp_path, capsys):
    """Runs the command on contents of files; what comes back is what it said."""

    def run(*contents, status=2):
        paths = [tmp_path / f"in{n}.json" for n in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        assert cli.main(["report", *map(str, paths), "-o", str(tmp_path / "x.html")]) == status
        return "".join(capsys.readouterr())

    return run


def test_the_command_writes_the_page_to_the_byte(report, tmp_path, made, whole):
    assert report(whole, status=0).strip().endswith("x.html")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == made.text.replace("sample.json", "in0.json")


def test_bad_files_leave_the_page_before(report, sample, tmp_path):
    (tmp_path / "x.html").write_text("the page before", encoding="utf-8")
    assert "in0.json has schema 1; this version reads 4" in report('{"schema": 1}')
    sample["stages"]["timings"]["items"]["moe_router/decode-B1"]["cache"] = "cold"
    assert "in0.json: at stages/timings/items/moe_router/decode-B1/cache: 'cold'" in report(sample)
    empty = {**sample, "stages": {"timings": {"items": {}, "not_run": {"moe_router/decode-B1": "no time left"}}}}
    assert "in0.json holds no result to report: nothing was run" in report(empty)
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == "the page before"


def test_a_result_file_is_not_overwritten(tmp_path, capsys):
    text = SAMPLE.read_text(encoding="utf-8")
    (path := tmp_path / "in.json").write_text(text, encoding="utf-8")
    assert cli.main(["report", str(path), "-o", str(path)]) == 2
    assert "--out must not be one of the result files" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == text
