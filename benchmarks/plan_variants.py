"""What a variant costs a plan: 250 variants of a grid planned beside one, in turns, in the same process.

Each variant has finetunes and predictions of its own over the same data, as a search over learning rates has. What is
timed is all that ``kvray plan`` does before the store is looked at: the YAML is read and checked, sources and lengths
are looked at, artefacts are planned. Seconds are of CPU time, so that a busy machine matters little.

    python benchmarks/plan_variants.py
    python benchmarks/plan_variants.py --variants 1000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from kvray.driver.run import prepare

SWEEP = """\
name: variants
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 40, dictionaries: 10}
  subkeys: {task: multi_subkey_kv, rows: 40, dictionaries: 10}
mixtures:
  kv: {kv: 1}
  blend: {kv: 1, subkeys: 1}
evaluate:
  longer: {task: simple_kv, rows: 20, dictionaries: 20, seed: 1}
grid:
  finetune.learning_rate: RATES
"""


def planned_s(variants: int, file: Path) -> tuple[float, int]:
    """Return the CPU seconds of planning a number of variants, and how many artefacts they have."""
    rates = [round(1e-6 * (1 + at / 100), 9) for at in range(variants)]
    file.write_text(SWEEP.replace("RATES", str(rates)))
    started = time.process_time()
    plan, _ = prepare(str(file))
    return time.process_time() - started, len(plan.artefacts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        planned_s(1, file)  # imports, tokenizer
        pairs = [(planned_s(1, file), planned_s(options.variants, file)) for _ in range(options.rounds)]
    one, many = (statistics.median(pair[at][0] for pair in pairs) for at in (0, 1))
    ratio = statistics.median(many[0] / one[0] for one, many in pairs)
    print(f"1 variant: {one:.3f} s; {options.variants} variants ({pairs[0][1][1]} artefacts): {many:.3f} s")
    print(f"{options.variants} variants take {ratio:.1f} times as long as one")


if __name__ == "__main__":
    main()
