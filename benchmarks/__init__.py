"""How fast it is, each figure beside its limit: the same work with no bookkeeping, measured in the same run.

python -m benchmarks P3 P7 --scale 0.2 --json
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "scripts"))  # its modules name each other without a package
