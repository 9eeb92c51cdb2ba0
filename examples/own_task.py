"""A task of one's own, made in shouting.py beside this file: trained on, asked, and compared as any other.

python examples/own_task.py     (after examples/sweep.py: what the two sweeps share is made once)
"""

from shouting import Shout
from sweep import sweep as first

import kvray

sweep = kvray.Sweep(
    name="own-task",
    base_model="kvray-tiny",
    datasets={"kv": first.datasets["kv"], "shout": Shout(rows=240)},
    mixtures={"kv": {"kv": 1}, "shout": {"shout": 1}},
    finetune=first.finetune,
    evaluate={"mdqa": first.evaluate["mdqa"], "shout": Shout(rows=30, seed=1)},
    runtime=first.runtime,
)

if __name__ == "__main__":
    result = kvray.run(sweep)
    print(result)
    print(result.compare("base", "shout"))
    print("The report:", result.report())
