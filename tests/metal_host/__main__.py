"""python -m tests.metal_host FILE...: the lint over files of kernel text; a line for each finding, and exit status 1 if there is one."""

import sys
from pathlib import Path

from .lint import lint_file

findings = [line for name in sys.argv[1:] for line in lint_file(Path(name))]
print("\n".join(findings) or f"{len(sys.argv) - 1} files of kernel text keep to the subset")
sys.exit(1 if findings else 0)
