"""Getting a search onto machines: jobs of Ray, manifests and scripts."""

import sys

if sys.platform == "win32":  # before modules are imported that do not exist there
    print("lipsum-tune: runs on Linux and macOS; on Windows, install it in WSL", file=sys.stderr)
    raise SystemExit(2)
