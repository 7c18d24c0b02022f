"""The project's vocabulary: names and phrases that are banned, and the term that replaces each.

Run as a script, it lists every use with its place and fails: `python tests/vocabulary.py`.
"""

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXEMPT = ("tests/vocabulary.py", "tests/test_vocabulary.py", ".github/CHANGELOG.md")  # they hold the old names

# Where (patterns of paths), then "old new" pairs: names in Python code, keywords and attributes included.
NAMES = {
    "*.py": """
        _Look PendingSync, LOOK SYNC_INTERVAL, looks sync_intervals, LoopOptions BatchingOptions,
        prefill_rows max_prefill_tokens, REHEARSAL SMOKE, rehearsal smoke, EP E_POW2, RP R_POW2,
        on_chip runs_kernel, by_reference cpu_fallback, fresh_counters zeroed_counters, decaying exp_nonpositive,
        _tiles launch_configs, kernel_record spec, frame_kernels specs, around_attention attention_adapter,
        plain_frame torch_frame, fault_texts mutants, nan_stays nan_isolated, parts_alone batch_invariant,
        later_stays_later causal, outside_is_unread reads_only_window, speaks has_vocoder, Speech VocoderRunner,
        Spoken VocoderOutput, _voices _vocoder_graphs, FAULTY SLOT_NONFINITE, Swaps PatchSet, Swap Patch,
        Swapped Patched, Left Skipped, Unchanged WeightGuard, Unfit Mismatched, Beyond Unsupported, Tree EngineModel,
        Built BuiltEngine, Seam HookPoint, _Manner RouterConvention, Handed RoutingCache, LOOKED_UP PATCH_POINTS,
        MADE DESCRIPTIONS, HOSTS INTEGRATIONS, hosts integrations, Port TorchModel, Found Measurement,
        FAULTS MUTANTS, Place LayerTiming, Slots BatchState, Frames ModelRunner, Loop Scheduler, Decoder VocoderDecoder,
        swap patch, swaps patches, seam hook_point, mates others
    """,
    "kernels/*.py": """
        SPLIT SPLITS, BLOCK_S BLOCK_KV, JOIN SPLITS, PLAIN FUSED_PREAMBLE, PAIR GATED,
        gain norm_w, squares sum_sq, product gemm_tile, _choose _topk, _sort _sort_by_expert, _owners _slot_expert,
        CARRY HAS_STATE, SORTED BLOCK_SORT, IDLE HAS_POSITIONS, busy rows_per_expert, lists routing_ptrs,
        lanes step_positions, onward ring_advance, span tap_range, gathered im2col_tile, emit store_epilogue,
        readable may_sync, fake register_meta, cast round_to, mma dot_fp32, turn apply_rotary, unit rms_normalize,
        TABLE LAUNCH_CONFIGS, KINDS VARIANTS, role variant
    """,
    "kernels/*attention.py": """
        ROWS BLOCK_G, highest m_new, fade alpha, place kv_offs, there mask_split, sums partial_acc, stats partial_ml,
        pair bh
    """,
    "kernels/* reference/*": "turned rotated, OPEN LENGTH_UNKNOWN, OUT SLOT_FREE, NEVER NEVER_SEEN",
    "model/runtime/*.py": """
        look sync_interval, turn step, alone per_sequence, _ahead pipelined, filling prefilling,
        fill prefill, draw sample, take alloc_pages, enter add, leave remove, collect drain, numbers scalars,
        room cache_len, filled num_prefilled, issued num_scheduled, collected to_generation, graphs cuda_graphs,
        OUT SLOT_FREE, NEVER NEVER_SEEN
    """,
    "model/runtime/scheduler.py model/runtime/batch_state.py": "streams max_batch_size",
    "model/vocoder*.py": "place timing, spans step_meta, lag delay, short tail_trim, OPEN LENGTH_UNKNOWN",
    "bench/*.py": """
        beside baselines, dry_run smoke, roof roofline, precompile warmup, draw_us sampling_us, most_mhz max_clock_mhz,
        low_us p20_us, high_us p80_us, implementations providers, card gpu, cards gpus, faults mutants
    """,
}
# As above, where a name is defined: functions and classes.
DEFINED = {"kernels/*.py": "block triton.next_power_of_2, cdiv triton.cdiv, taps tap_range, long needs_int64"}
# As above, parameters of functions, and of operators in kernels/schemas.json.
PARAMETERS = {
    "kernels/* reference/*": """
        order sorted_slot_ids, spans step_meta, lag delay,
        short tail_trim, act activated, temp qk_temperature, longest max_seqlen_q, starts cache_seqlens,
        faults nonfinite, limits max_frames, offsets expert_offsets
    """,
    "kernels/*": "rate samples_per_frame",
    "kernels/moe* reference/moe*": "biases balancing_biases, state router_state, scale state_scale",
}
# Operators, their files in kernels/ and reference/, and their tests.
OPERATORS = """
    experts moe_experts, router moe_router, head codebook_head, sample sample_codes, advance sample_codes,
    codebook_sum rvq_decode, convolution conv1d_snake, transposed_convolution conv_transpose1d_snake,
    waveform conv1d_tanh
"""
# Files and folders, without their endings.
FILES = """
    hosts integrations, beside baselines, dry_run offline_compile, whole end_to_end, scale presets, roof roofline,
    goals performance_targets, choice cli_choices, clips ring_access, kernel_record spec, workloads inputs,
    frame_kernels backbone, implementations providers, around_attention attention_adapter, plain torch_ops,
    plain_ops torch_ops, plain_frame torch_frame, faults mutation, fault_texts mutants, binary cubin_stats,
    precompile warmup, cards gpus, ranges nvtx, record recorder, speech vocoder_runner,
    test_swap test_patch, port torch_module, tree engine_model
"""
# Keys of JSON files in bench/ and tests/bench/.
KEYS = """
    beside torch_frame, baseline torch_frame, low_us p20_us, high_us p80_us, low_ms p20_ms, high_ms p80_ms,
    most_mhz max_clock_mhz, draw_us sampling_us, percent_of_copy pct_measured_bandwidth,
    percent_of_matmul pct_measured_tflops, percent_of_sheet pct_datasheet, left_to_the_launch not_precompiled,
    plain torch_rms, how method, kernels accuracy, graph cuda_graph, whole end_to_end, hosts integrations,
    rehearsal smoke, role variant
"""
# Anywhere, as words: options of commands, environment variables, results of JSON that code writes.
WORDS = """
    --dry-run --smoke, --again --rerun, --only-stage --stage, --force --allow-different-gpus,
    --update-baseline --update-snapshot, ZONOS2_TRITON_CONFIG ZONOS2_TRITON_LAUNCH_CONFIG,
    left_to_the_launch not_precompiled, percent_of_copy pct_measured_bandwidth, percent_of_sheet pct_datasheet,
    percent_of_matmul pct_measured_tflops
"""
# In docstrings, comments and Markdown, without regard to case.
PHRASES = {
    "whoever": "the caller, a consumer, a program",
    "nobody": "no caller, no program",
    "rehears(?:e|al|als)": "smoke run",
    "28-layer decoder": "backbone",
    "early sound": "latency and quality",
    "what fuses what": "fusion map",
    "many at once": "continuous batching",
    "the way of a frame": "data flow",
    "where the time goes": "profiling",
    "what a card can do": "capacity planner",
    "other bits": "not bitwise identical",
    "row's mates": "other requests",
    "frame loop": "scheduler",
}
LONGEST = 35  # words in a sentence
OPENINGS = ("What", "Of", "Whoever")  # of a docstring

Finding = tuple[int, str, str]  # line, old, new


def pairs(text: str) -> dict[str, str]:
    """Old to new names of a table above."""
    return dict(item.split() for item in text.split(",") if item.strip())


def table(scopes: dict[str, str], path: str) -> dict[str, str]:
    """The old and new names that count in a file."""
    matching = (text for patterns, text in scopes.items() if any(fnmatch(path, each) for each in patterns.split()))
    return {old: new for text in matching for old, new in pairs(text).items()}


def in_code(path: str, tree: ast.Module, tokens: list[tokenize.TokenInfo]) -> Iterator[Finding]:
    """Banned names, definitions and parameters of a Python file."""
    names, defined, parameters = (table(scopes, path) for scopes in (NAMES, DEFINED, PARAMETERS))
    for token in tokens:
        if token.type == tokenize.NAME and token.string in names:
            yield token.start[0], token.string, names[token.string]
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg in parameters:
            yield node.lineno, node.arg, parameters[node.arg]
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in defined:
            yield node.lineno, node.name, defined[node.name]


def in_json(path: str, text: str) -> Iterator[Finding]:
    """Banned keys of a JSON file, operators in keys, and arguments in the schemas. The line is not known."""
    operators, parameters = pairs(OPERATORS), table(PARAMETERS, path)
    keys = pairs(KEYS) if "bench/" in path else {}
    for key in re.findall(r'"([^"\n]*)":', text):
        if key in keys:
            yield 1, key, keys[key]
        if (operator := key.split("/")[0]) in operators:
            yield 1, operator, operators[operator]
    if path == "kernels/schemas.json":
        yield from ((1, name, parameters[name]) for name in re.findall(r"\w+", text) if name in parameters)


def in_path(path: str) -> Iterator[Finding]:
    """Banned names of a file and its folders."""
    files, operators = pairs(FILES), pairs(OPERATORS)
    *folders, name = path.split("/")
    stem = name.split(".")[0]
    yield from ((0, part, files[part]) for part in (*folders, stem) if part in files)
    if folders[-1:] in (["kernels"], ["reference"]) and (operator := stem.removeprefix("test_")) in operators:
        yield 0, operator, operators[operator]


def in_words(text: str) -> Iterator[Finding]:
    """Banned words of a text, whatever it is."""
    words = pairs(WORDS)
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])")
    for number, line in enumerate(text.splitlines(), 1):
        yield from ((number, old, words[old]) for old in pattern.findall(line))


def sentences(text: str) -> Iterator[str]:
    """Sentences of a docstring or a page. Items of lists, headings and indented blocks end one; cells are left out.

    In a list of definitions ("name   what it is; what else") a semicolon ends one, too.
    """
    term = r"(?:[\w.,*]+ ){1,3} +\S"
    for block in re.split(rf"\n\s*\n|\n\s*(?=[*+-] |\d+\. |[|#]|<!--|{term})|\n(?=[A-Z]\w*: )|:\n", text):
        ends = ".?!;" if re.match(rf"\s*{term}", block) else ".?!"
        if not block.lstrip().startswith("|"):
            yield from re.split(rf"(?<=[{ends}])[)\"*`]*\s+", block)


def in_prose(kind: str, line: int, text: str) -> Iterator[Finding]:
    """Banned phrases of a docstring, comment or page; sentences that are too long; openings of docstrings."""
    flat = " ".join(text.split()).lower()
    for phrase, better in PHRASES.items():
        if re.search(rf"\b{phrase}\b", flat):
            yield line, phrase, better
    if kind == "docstring" and (opening := text.split()[0]) in OPENINGS:
        yield line, f"{opening} at the start", "a sentence with its subject first"
    for sentence in sentences(text) if kind != "comment" else ():
        if (words := len(sentence.split())) > LONGEST:
            yield line, f"a sentence of {words} words", f"two: {' '.join(sentence.split()[:8])} ..."


def findings(path: str, text: str) -> Iterator[Finding]:
    """Everything that a file holds against the vocabulary."""
    yield from in_path(path)
    yield from in_words(text)
    if path.endswith(".json"):
        yield from in_json(path, text)
    elif path.endswith(".md"):
        yield from in_prose("page", 1, re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    elif path.endswith(".py"):
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__))
        yield from in_code(path, tree, tokens)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and (said := ast.get_docstring(node)):
                yield from in_prose("docstring", node.body[0].lineno, said)
        for token in tokens:
            if token.type == tokenize.COMMENT:
                yield from in_prose("comment", token.start[0], token.string)


def report() -> Iterator[str]:
    """A line for each finding in the files that git tracks."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in run.stdout.splitlines():
        if path.endswith((".py", ".json", ".md", ".toml", ".j2", "Makefile")) and not path.startswith(EXEMPT):
            text = (ROOT / path).read_text(encoding="utf-8")
            for line, old, new in sorted(set(findings(path, text))):
                yield f"{path}:{line}: {old} -> {new}"


if __name__ == "__main__":
    found = list(report())
    print(*found, sep="\n")
    sys.exit(bool(found))
