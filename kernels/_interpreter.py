"""Repairs of Triton's interpreter, made when kernels are imported into it. A compiling process never comes here."""

from typing import Any

from triton.runtime import interpreter


def repair() -> None:
    """Lets Triton 3.6 run `for i in range(n)` over a run-time n with numpy 2.4, for the whole process.

    It takes int() of an array of one element, which numpy 2.4 refuses. Triton 3.9 does not, and is none the worse.
    """
    original = interpreter._patch_lang_tensor
    if getattr(original, "repaired", False):
        return

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda value: int(value.handle.data.item()))

    patch.repaired = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patch
