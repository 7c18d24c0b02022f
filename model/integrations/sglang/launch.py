"""The command sgl-omni with this package's plugin: `python -m zonos2_triton.model.integrations.sglang.launch ...`

Everything behind the module's name goes to sgl-omni. SGLang's plugins are loaded before, which sgl-omni itself does
not do; where the plugin cannot take its place, nothing is started.
"""

import importlib
import logging
import sys

from zonos2_triton._settings import SGLANG, sglang_components
from zonos2_triton.model.integrations.sglang.plugin import plugin

LOG = logging.getLogger("zonos2_triton")


def main() -> int:
    """The exit status: 1 where the plugin or the engine is not as needed; else sgl-omni ends the process itself."""
    try:
        if not sglang_components():
            LOG.warning("%s names no part: sgl-omni runs as it is", SGLANG)
        plugin()
        importlib.import_module("sglang.srt.plugins").load_plugins()
        app = importlib.import_module("sglang_omni.cli").app
    except (ImportError, ValueError) as error:
        print(f"zonos2-triton: {error}", file=sys.stderr)
        return 1
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
