"""The rule of `last_to_arrive` on AMD: every wavefront has waited for its own stores before the release.

The release writes back what is in L2, and waits for the stores of its own wavefront alone. So between the last store
ahead of it and the release there are, in this order, a wait for all stores and a barrier.
"""

import re
from typing import Any

STEPS = {
    "store": r"(?:buffer|global|flat)_store_",
    "wait": r"s_waitcnt\b.*\bvmcnt\(0\)",
    "barrier": r"s_barrier\b",
    "release": r"buffer_wbl2\b",
}


def violations(kernel: Any) -> list[str]:
    """The releases of a compiled kernel that could miss stores of other wavefronts, in words."""
    step = re.compile(r"^\s+(?:" + "|".join(f"(?P<{name}>{text})" for name, text in STEPS.items()) + ")", re.MULTILINE)
    text = kernel.asm.get("amdgcn", "")
    pending, found = "", []  # of the last store: what it still lacks
    for match in step.finditer(text):
        kind = match.lastgroup
        if kind == "store":
            pending = "wait"
        elif kind == pending:
            pending = "barrier" if kind == "wait" else ""
        elif kind == "release" and pending:
            line = text.count("\n", 0, match.start(kind)) + 1
            found.append(f"the release in line {line} may miss stores of other wavefronts: no {pending} before it")
    return found
