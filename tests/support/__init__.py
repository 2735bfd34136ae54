"""What several test modules share: models, processes, oracles. Fixtures are in conftest.py; no test is here.

Without a GPU Triton interprets its kernels, which it has to know before anything imports it.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
