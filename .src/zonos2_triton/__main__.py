"""`python -m zonos2_triton` is the command zonos2-triton."""

from zonos2_triton.model.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
