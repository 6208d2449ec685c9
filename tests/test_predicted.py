"""The table of predictions matches the current cost model."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_document_has_what_the_model_says():
    result = subprocess.run([sys.executable, "benchmarks/predicted.py", "--print"], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "ms |" in result.stdout
    assert result.stdout.strip() in (ROOT / "docs" / "benchmarks.md").read_text()
