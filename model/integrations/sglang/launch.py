"""The command sgl-omni with this package's plugin: `python -m zonos2_triton.model.integrations.sglang.launch ...`

All arguments go to sgl-omni. Before it starts, SGLang's plugins are loaded, which sgl-omni itself does not do. If the
plugin fails, nothing starts.
"""

import importlib
import logging
import sys

from zonos2_triton._settings import SGLANG, sglang_components
from zonos2_triton.model.integrations.sglang.plugin import plugin

LOG = logging.getLogger("zonos2_triton")


def main() -> int:
    """Return the exit status: 1 if the plugin or the engine fails. Otherwise sgl-omni ends the process itself."""
    try:
        if not sglang_components():
            LOG.warning("%s names no component: sgl-omni runs as it is", SGLANG)
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
