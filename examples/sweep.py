"""A sweep in Python: does a small model read documents better after finetuning on dictionaries?

python examples/sweep.py        (two cores, no GPU, no download: about a minute)

Artefacts go to $KVRAY_STORE, else ./store; typed again, it has nothing left to do and shows the same results.
"""

import kvray

sweep = kvray.Sweep(
    name="example",
    base_model="kvray-tiny",
    datasets={"kv": kvray.tasks.SimpleKV(rows=64, dictionaries=8)},
    finetune=kvray.Finetune(epochs=1, learning_rate=3e-3, batch_size=8),
    evaluate={"mdqa": kvray.tasks.Mdqa(documents=10, positions=[1, 5, 10], questions=20)},
    runtime=kvray.Runtime(num_cpus=2),
)

if __name__ == "__main__":
    plan = kvray.plan(sweep)
    print(plan)  # what will be made, why, and about how long it takes
    result = kvray.run(plan)
    print(result)  # a row per model, a column per evaluation
    print(result.accuracy(by=["model", "position"]))
    print(result.compare("base", "kv"))
    print("The report:", result.report())
    print("The same sweep as a file, for kvray run FILE:\n")
    print(sweep.to_yaml())
