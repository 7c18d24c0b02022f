"""Edits of source code that survive other names of local variables and another formatting.

A pattern is a text of the code, with `{{old => new}}` where it changes. The two are compared token by token. Line
breaks, comments, trailing commas and parentheses around a whole expression do not count. A lower-case name of a pattern
is a metavariable: it stands for one local variable, and two names stand for two variables. Every other name is literal:
keywords, builtins, module-level names, called functions, attributes, keyword arguments, `*_ptr`, and names with a
capital letter. `...` skips tokens, as few as possible, within one top-level statement: `def name(...` leads to a
function, and `x = ... y + {{y => x}}` binds the name that a replacement needs.

An edit covers whole tokens. `pass` replaces a statement that is removed. `;` ends a statement: with one at its end, an
insertion is a statement of its own before the next one.
"""

import ast
import builtins
import keyword
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

_TOKEN = re.compile(
    r"""(?P<space>[\s\\]+|\#[^\n]*)
    |[a-zA-Z]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<name>[^\W\d]\w*)
    |0[xX][\da-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?
    |\.\.\.|->|(?:\*\*|//|>>|<<|[-+*/%&|^@!=<>:])=?|.""",
    re.VERBOSE | re.DOTALL,
)
_EDIT = re.compile(r"\{\{(.*?) => (.*?)\}\}", re.DOTALL)
_WRAPS = {"=", "+=", "-=", "*=", "/=", "return", "if", "elif", "while", "in"}  # an expression in parentheses may follow


@dataclass(frozen=True)
class Token:
    text: str
    start: int  # in the text that it comes from
    indent: int | None = None  # of the logical line that begins here
    variable: bool = False


@dataclass(frozen=True)
class Edit:
    begin: int  # tokens of a statement, from here
    end: int
    words: tuple[str, ...]
    leads: bool  # stands at the beginning of a line if the next token does


def _tokens(text: str, names: frozenset[str]) -> list[Token]:
    """names: those that are no local variables, but for what the syntax tells apart."""
    found: list[Token] = []
    depth, begins = 0, True
    for match in _TOKEN.finditer(text):
        word, end = match[0], match.end()
        if match["space"]:
            begins |= "\n" in word and depth == 0
            continue
        variable = (
            match["name"] is not None
            and word == word.lower()
            and not word.endswith("_ptr")
            and not (word in names or keyword.iskeyword(word) or word.strip("_") == "")
            and not (found and found[-1].text == ".")
            and re.match(r"\(|=(?!=)", text[end:]) is None  # called, or the keyword of an argument
        )
        indent = match.start() - text.rfind("\n", 0, match.start()) - 1 if begins else None
        found.append(Token(word, match.start(), indent, variable))
        begins = False
        depth += (word in ("(", "[", "{")) - (word in (")", "]", "}"))
    return found


def _plain(found: Sequence[Token]) -> list[Token]:
    """Without trailing commas, and without parentheses around the whole expression of a statement."""
    dropped: set[int] = set()
    opened: list[tuple[int, list[str]]] = []  # the brackets that are open: where, and the words directly within
    for i, token in enumerate(found):
        if token.text in (")", "]", "}"):
            start, words = opened.pop()
            before = found[start - 1].text
            called = before in (")", "]") or (before.isidentifier() and not keyword.iskeyword(before))
            if found[i - 1].text == "," and (words.count(",") > 1 or (token.text == ")" and called)):
                dropped.add(i - 1)
            ends = i + 1 == len(found) or found[i + 1].indent is not None or found[i + 1].text == ":"
            tied = {"for", ":="} | ({","} if before not in ("=", "return") else set())  # what needs the parentheses
            whole = before in _WRAPS and not opened and ends and words and not tied & {*words}
            if token.text == ")" and (whole or before == "import"):
                dropped |= {start, i}
        if opened:
            opened[-1][1].append(token.text)
        if token.text in ("(", "[", "{"):
            opened.append((i, []))
    return [token for i, token in enumerate(found) if i not in dropped]


@lru_cache(maxsize=100)
def _read(source: str) -> tuple[frozenset[str], list[list[Token]]]:
    """The names that are no local variables, and the tokens of each top-level statement."""
    names, starts = {*dir(builtins)}, []
    lines = [0, *(match.end() for match in re.finditer("\n", source))]
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            names |= {each.asname or each.name for each in ast.walk(node) if isinstance(each, ast.alias)}
            names |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        starts.append(lines[first - 1])
    found = _plain(_tokens(source, frozenset(names)))
    parts = [
        [token for token in found if start <= token.start < end]
        for start, end in zip(starts, [*starts[1:], len(source) + 1], strict=True)
    ]
    return frozenset(names), parts


def _side(pattern: str, group: int, names: frozenset[str]) -> tuple[list[Token], list[tuple[int, int]]]:
    """A pattern before (1) or after its edits (2), and which of its tokens are of each edit."""
    text, ends, last = "", [], 0
    for edit in _EDIT.finditer(pattern):
        text += pattern[last : edit.start()]
        ends.append((len(text), len(text := text + edit[group])))
        last = edit.end()
    found = _tokens(text + pattern[last:], names)
    for end in (end for pair in ends for end in pair):
        if cut := next((token for token in found if token.start < end < token.start + len(token.text)), None):
            raise ValueError(f"{pattern!r}: an edit must cover whole tokens, not a part of {cut.text}")
    starts = [token.start for token in found]
    return found, [(bisect_left(starts, begin), bisect_left(starts, end)) for begin, end in ends]


def _match(
    pattern: Sequence[Token], statement: Sequence[Token], at: int, bound: Mapping[str, str]
) -> tuple[list[int], Mapping[str, str]] | None:
    """Where each token of the pattern lies if the first lies at `at`, and the names of its variables."""
    where: list[int] = []
    for i, want in enumerate(pattern):
        if want.text == "...":
            rests = (_match(pattern[i + 1 :], statement, later, bound) for later in range(at, len(statement)))
            rest = next(filter(None, rests), None)
            return rest and ([*where, at, *rest[0]], rest[1])
        have = statement[at] if at < len(statement) else None
        if have is None or want.variable != have.variable:
            return None
        if want.variable and want.text not in bound and have.text not in bound.values():
            bound = {**bound, want.text: have.text}
        if have.text != (bound.get(want.text) if want.variable else want.text):
            return None
        where.append(at)
        at += 1
    return where, bound


def _edits(pattern: str, names: frozenset[str], statement: Sequence[Token]) -> dict[tuple[Edit, ...], int]:
    """The edits at each place of a statement where the pattern fits, and where that is in the source."""
    old, olds = _side(pattern, 1, names)
    new, news = _side(pattern, 2, names)
    places = {}
    for start in range(len(statement)):
        if (found := _match(old, statement, start, {})) is None:
            continue
        where, bound = found
        edits = []
        for (a, b), (c, d) in zip(olds, news, strict=True):
            if free := {token.text for token in new[c:d] if token.variable} - {*bound}:
                raise ValueError(f"{pattern!r} does not bind {', '.join(sorted(free))}")
            words = tuple(bound[token.text] if token.variable else token.text for token in new[c:d])
            begin = where[a] if a < len(old) and old[a].text != "..." else where[a - 1] + 1
            leads = b > a or words[-1:] == (";",) or a == 0 or old[a - 1].text == "..."
            edits.append(Edit(begin, begin + b - a, words, leads))
        places[tuple(edits)] = statement[edits[0].begin].start
    return places


def _edited(statement: Sequence[Token], edits: Sequence[Edit]) -> list[Token]:
    tokens = [*statement]
    for edit in reversed(edits):
        indent = tokens[edit.begin].indent if edit.leads else None
        if indent is not None and edit.begin == edit.end:
            tokens[edit.begin] = replace(tokens[edit.begin], indent=None)
        tokens[edit.begin : edit.end] = [Token(word, 0) for word in edit.words]
        # Else the line is gone.
        if indent is not None and edit.begin < len(tokens) and tokens[edit.begin].indent is None:
            tokens[edit.begin] = replace(tokens[edit.begin], indent=indent)
    return tokens


def apply(pattern: str, source: str) -> str:
    """The source with the pattern's edits. ValueError: it does not fit once, or does not bind what an edit needs."""
    names, statements = _read(source)
    places = [
        (i, edits, source.count("\n", 0, start) + 1)
        for i, statement in enumerate(statements)
        for edits, start in _edits(pattern, names, statement).items()
    ]
    if len(places) != 1:
        lines = f", lines {', '.join(str(line) for *_, line in places)}" if places else ""
        raise ValueError(f"{pattern!r} fits {len(places)} times{lines}, not once")
    [(i, edits, _)] = places
    statements = [*statements[:i], _edited(statements[i], edits), *statements[i + 1 :]]
    text, indent, begins = "", 0, False
    for token in chain(*statements):
        if token.indent is not None:
            begins, indent = True, token.indent
        if token.text != ";":
            text += ("\n" + " " * indent if begins else " ") + token.text
        begins = token.text == ";"
    return text
