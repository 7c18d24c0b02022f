"""Patterns of mutants: their edits; other names of local variables and another format break none of them."""

import ast
import itertools
import subprocess
import sys
from functools import cache

import pytest

from zonos2_triton.bench.proof.mutants import distinct
from zonos2_triton.bench.proof.mutation import SOURCES
from zonos2_triton.bench.proof.patterns import apply

SOURCE = '''"""Docstring."""
import triton
LIMIT = 4

@triton.jit
def first(x_ptr, n, eps):  # comment
    at = n * 2
    if at < n:
        y = (
            tl.load(
                x_ptr + at,
                mask=at < n,
            )
            + eps
        )
        tl.store(x_ptr, y)
    return at, (n,)

def second(a, b):
    z = a + LIMIT
    return z
'''


def edited(pattern):
    """The lines that the pattern changes, before and after."""
    old, new = (ast.unparse(ast.parse(text)).splitlines() for text in (SOURCE, apply(pattern, SOURCE)))
    return [line.strip() for line in old if line not in new], [line.strip() for line in new if line not in old]


@pytest.mark.parametrize(
    ("pattern", "old", "new"),
    [
        ("if a {{< => <=}} b:", "if at < n:", "if at <= n:"),
        ("p = {{q => (q + 1)}} * 2", "at = n * 2", "at = (n + 1) * 2"),
        (
            "tl.load(x_ptr + i{{, mask=i < n => }})",
            "y = tl.load(x_ptr + at, mask=at < n) + eps",
            "y = tl.load(x_ptr + at) + eps",
        ),
        ("{{tl.store(x_ptr, y) => pass}}", "tl.store(x_ptr, y)", "pass"),
        ("if i < n: {{ => i = n; }}y =", None, "at = n"),
        ("{{ => i = n; }}if i < n: ... ", None, "at = n"),
        ("def second(... a{{ =>  * 2}} + LIMIT", "z = a + LIMIT", "z = a * 2 + LIMIT"),
        ("return a, ({{b, => a, b}})", "return (at, (n,))", "return (at, (at, n))"),
    ],
)
def test_an_edit(pattern, old, new):
    assert edited(pattern) == ([old] if old else [], [new])


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in distinct()}))
def test_an_edit_leaves_the_rest_as_it_is(file):
    source = (SOURCES / f"{file}.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(apply("import triton{{ => }}.language", source))) == ast.dump(ast.parse(source))


@cache
def renamed(file):
    """The module with other names for the local variables of its jit functions, in narrow lines; and the old names."""
    source = (SOURCES / f"{file}.py").read_text(encoding="utf-8")
    lines, names, numbers = source.splitlines(), {}, itertools.count()
    jitted = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    places = []
    for function in jitted:
        nodes = [node for part in (function.args, *function.body) for node in ast.walk(part)]
        local = {node.arg for node in nodes if isinstance(node, ast.arg)}
        local |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        new = {x: f"v{next(numbers)}" for x in local if x == x.lower() and x.strip("_") and not x.endswith("_ptr")}
        names |= {other: name for name, other in new.items()}
        for node in nodes:
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else None
            if name in new:
                places.append((node.lineno - 1, node.col_offset, name, new[name]))
    for line, column, name, other in sorted(places, reverse=True):
        text = lines[line].encode()
        lines[line] = (text[:column] + other.encode() + text[column + len(name) :]).decode()
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "80", "-"]
    formatted = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    return source, formatted, names


def test_names_and_format_do_not_matter():
    """The mutants of a renamed and reformatted module are those of the module, token by token."""
    broken = []
    for mutant in distinct():
        source, formatted, names = renamed(mutant.file)
        try:
            words = apply(mutant.pattern, formatted).split()
        except ValueError as error:
            broken.append(f"{mutant.file}: {error}")
            continue
        if [names.get(word, word) for word in words] != apply(mutant.pattern, source).split():
            broken.append(f"{mutant.file}: {mutant.pattern!r} makes another mutant")
    assert not broken, "\n".join([f"{len(broken)} of {len(distinct())}:", *broken])
