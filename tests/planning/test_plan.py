"""A plan is a pure function of a sweep and its inputs: what is shared is planned once, what is added adds alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import Quiz, Toy

from kvray.errors import InputError, SourceUnreachableError, StoreError
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning import inputs
from kvray.planning.artefacts import FinetuneJob, Plan, PredictionsJob, described
from kvray.planning.inputs import Inputs, gather
from kvray.planning.plan import plan
from kvray.store.fingerprint import fingerprint
from kvray.store.store import Store
from kvray.sweep.grid import variants
from kvray.sweep.model import Budget, Runtime, Sweep
from kvray.tasks.base import REGISTRY, Task

BASE = BaseModelRef("tiny", "/models/tiny", None, "sha256:abc")
OTHER: dict[str, Any] = {
    "method": "full",
    "epochs": 3.0,
    "learning_rate": 2e-4,
    "batch_size": 8,
    "seeds": (5,),
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_dropout": 0.1,
    "lora_targets": ("q_proj",),
    "scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 2.0,
    "max_length": 512,
    "match": "rows",
}
"""For every field of Finetune a value that is not its default."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setitem(REGISTRY, "quiz", Quiz)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)


def sweep_of(**changes: Any) -> Sweep:
    blocks: dict[str, Any] = {
        "name": "s",
        "base_model": "tiny",
        "datasets": {"ours": {"task": "toy", "rows": 20}, "other": {"task": "toy", "rows": 30, "seed": 1}},
        "mixtures": {"ours": {"ours": 1}, "blend": {"ours": 1, "other": 3}},
        "finetune": {"seeds": [0, 1]},
        "evaluate": {"ask": {"task": "toy", "rows": 5, "seed": 9}},
    }
    return Sweep.model_validate({**blocks, **changes})


def planned(sweep: Sweep | None = None, **changes: Any) -> Plan:
    sweep = sweep or sweep_of(**changes)
    return plan(sweep, gather(sweep))


def ids(found: Plan, kind: str | None = None) -> list[str]:
    return [artefact.id for artefact in found.artefacts if kind in (None, artefact.kind)]


def test_every_cell_and_the_base_model_are_planned_once() -> None:
    found = planned()
    assert len(ids(found)) == len(set(ids(found)))
    assert len(ids(found, "dataset")) == 3
    assert len(ids(found, "finetune")) == 2 * 2
    labels = [artefact.labels for artefact in found.artefacts if artefact.kind == "predictions"]
    nobody = {"evaluation": "ask", "mixture": None, "finetune": None, "seed": None}
    cells = [
        {"evaluation": "ask", "mixture": mixture, "finetune": "lora", "seed": seed}
        for mixture, seed in itertools.product(("ours", "blend"), (0, 1))
    ]
    assert labels == [nobody, *cells]


def recipes(**finetune: Any) -> list[dict[str, Any]]:
    found = planned(mixtures={"ours": {"ours": 1}}, finetune={"seeds": [0]}, zip=finetune)
    return [artefact.recipe["finetune"] for artefact in found.artefacts if artefact.kind == "finetune"]


def test_a_rate_that_is_left_out_is_that_of_each_method() -> None:
    methods = ["lora", "attention", "full"]
    found = recipes(**{"finetune.method": methods})
    assert [(each["method"], each["learning_rate"]) for each in found] == list(
        zip(methods, [1e-4, 5e-6, 5e-6], strict=True)
    )
    assert found == recipes(**{"finetune.method": methods, "finetune.learning_rate": [None, None, 5e-6]})


def test_attention_is_the_list_that_every_recipe_had_before() -> None:
    listed = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert recipes(**{"finetune.lora_targets": ["attention"]})[0]["lora_targets"] == listed
    known = ids(planned(finetune={"lora_targets": listed, "learning_rate": 1e-4}))
    assert ids(planned(finetune={"lora_targets": "attention"})) == ids(planned(finetune={})) == known


def test_what_is_needed_comes_before() -> None:
    seen: set[str] = set()
    for artefact in planned(grid={"finetune.epochs": [1, 2]}).artefacts:
        assert set(artefact.needs) <= seen
        seen.add(artefact.id)


def test_fingerprints_cover_recipe_and_needs() -> None:
    found = planned()
    prints = {artefact.id: artefact.fingerprint for artefact in found.artefacts}
    for artefact in found.artefacts:
        assert artefact.fingerprint == fingerprint(artefact.recipe, [prints[need] for need in artefact.needs])
        folder, _, rest = artefact.id.partition("/")
        assert folder == {"dataset": "datasets", "finetune": "finetunes"}.get(artefact.kind, "predictions")
        assert rest == f"{artefact.name}-{artefact.fingerprint[:16]}"


def test_planning_is_pure() -> None:
    sweep = sweep_of(grid={"finetune.epochs": [1, 2]})
    inputs = gather(sweep)
    assert plan(sweep, inputs) == plan(sweep, inputs)
    assert plan(sweep, inputs).to_json() == plan(sweep, inputs).to_json()


@pytest.mark.parametrize(
    "added",
    [
        {"mixtures": {"ours": {"ours": 1}, "blend": {"ours": 1, "other": 3}, "other": {"other": 1}}},
        {"finetune": {"seeds": [0, 1, 2]}},
        {"evaluate": {"ask": {"task": "toy", "rows": 5, "seed": 9}, "more": {"task": "toy", "seed": 8}}},
        {"grid": {"finetune.learning_rate": [1e-4, 2e-4]}},
        {
            "datasets": {
                "ours": {"task": "toy", "rows": 20},
                "other": {"task": "toy", "rows": 30, "seed": 1},
                "unused": {"task": "toy", "seed": 2},
            }
        },
    ],
    ids=["mixture", "seed", "evaluation", "grid", "dataset in no mixture"],
)
def test_adding_adds_new_artefacts_alone(added: dict[str, Any]) -> None:
    before, after = planned(), planned(**added)
    assert set(ids(before)) <= set(ids(after))
    assert (len(ids(after)) > len(ids(before))) == ("datasets" not in added)


@pytest.mark.parametrize("name", list(Runtime.model_fields))
def test_no_runtime_field_changes_anything(name: str) -> None:
    other = {
        "address": "auto", "strategy": "fsdp", "gradient_checkpointing": True, "gpu_memory_utilization": 0.5,
        "object_store_memory": 2**30, "max_model_len": 4096, "api_base_url": "http://127.0.0.1:1",
        "workers_per_finetune": 8, "engine": "my_module:MyEngine", "scratch": "/fast", "model_cache": "/fast",
        "trackers": ("tensorboard",), "budget": Budget(gpu_hours=2), "gpu_price": 1.5,
    }.get(name, 7)  # fmt: skip
    assert getattr(Runtime(), name) != other
    assert ids(planned(runtime={name: other})) == ids(planned())


def test_names_and_order_in_the_file_change_nothing() -> None:
    renamed = planned(
        name="another",
        datasets={"b": {"task": "toy", "rows": 30, "seed": 1}, "a": {"task": "toy", "rows": 20}},
        mixtures={"x": {"a": 5}, "y": {"b": 6, "a": 2}},
        evaluate={"asked": {"task": "toy", "rows": 5, "seed": 9}},
    )
    assert set(ids(renamed)) == set(ids(planned()))


def test_the_first_mixture_sets_the_tokens_of_the_others() -> None:
    found = {x.labels["mixture"]: x for x in planned(finetune={"seeds": 0}).artefacts if x.kind == "finetune"}
    ours, blend = found["ours"].params, found["blend"].params
    assert isinstance(ours, FinetuneJob) and isinstance(blend, FinetuneJob)
    assert not ours.budget and "budget" not in found["ours"].recipe
    assert blend.budget == ours.mixture and found["blend"].recipe["budget"]
    assert set(found["ours"].needs) <= set(found["blend"].needs)
    assert found["blend"].tokens == found["ours"].tokens
    turned = planned(mixtures={"blend": {"ours": 1, "other": 3}, "ours": {"ours": 1}}, finetune={"seeds": 0})
    assert not set(ids(turned, "finetune")) & {found["ours"].id, found["blend"].id}
    by_rows = planned(finetune={"seeds": 0, "match": "rows"})
    assert not any(x.params.budget for x in by_rows.artefacts if isinstance(x.params, FinetuneJob))


def test_each_seed_draws_its_own_data_where_asked() -> None:
    found = planned(finetune={"seeds": [0, 2], "reseed_data": True})
    data = {x.id: x for x in found.artefacts if x.kind == "dataset"}
    finetunes = {(x.labels["mixture"], x.labels["seed"]): x for x in found.artefacts if x.kind == "finetune"}
    for (mixture, seed), finetune in finetunes.items():
        used = {data[need].recipe["task"]["seed"] for need in finetune.needs}
        assert used == ({seed} if mixture == "ours" else {seed, 1 + seed})
    assert {x.labels["dataset"] for x in data.values()} >= {"ours", "ours[seed=2]"}
    assert len([x for x in found.artefacts if x.kind == "predictions"]) == 1 + 2 * 2
    with pytest.raises(ValueError, match="the same examples are drawn by the same seed"):
        changes = {"finetune": {"seeds": [0, 9], "reseed_data": True}, "evaluate": {"ask": {"task": "toy", "seed": 9}}}
        Sweep(**sweep_of(**changes).written())


def test_a_model_behind_an_api_has_other_hyperparameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "resolve", resolve)
    model = {"base_model": "openai:gpt-x", "tokenizer": "kvray-tiny"}
    before = planned(**model)
    made = next(x for x in before.artefacts if x.kind == "finetune")
    assert made.recipe["base"] == "openai:gpt-x" and made.labels["finetune"] == "api"
    assert "learning_rate" not in made.recipe["finetune"] and "lora_rank" not in made.recipe["finetune"]
    assert ids(before) == ids(planned(**model, finetune={"seeds": [0, 1], "learning_rate": 1e-4}))
    for change in ({"api_batch_size": 4}, {"api_learning_rate_multiplier": 2.0}, {"epochs": 3}):
        after = planned(**model, finetune={"seeds": [0, 1], **change})
        assert not set(ids(before, "finetune")) & set(ids(after, "finetune"))
    told = planned(**model, system_message="Be brief.")
    assert ids(told, "dataset") == ids(before, "dataset")
    assert not set(ids(told, "finetune")) & set(ids(before, "finetune"))
    assert not set(ids(told, "predictions")) & set(ids(before, "predictions"))


def test_a_plan_goes_on_without_what_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(name: str, tokenizer: str | None = None) -> BaseModelRef:
        raise SourceUnreachableError(f"base_model: the hub does not answer for {name}")

    monkeypatch.setattr(inputs, "resolve", silent)
    with pytest.raises(InputError, match="does not answer for tiny"):
        gather(sweep_of())
    found = gather(sweep_of(), offline=True)
    assert any("does not answer for tiny" in note for note in found.notes)
    assert plan(sweep_of(), found).notes == found.notes
    assert found.base.identity.startswith("unresolved:")


@pytest.mark.parametrize("name", sorted(OTHER))
def test_every_recipe_field_of_finetune_changes_the_finetunes_alone(name: str) -> None:
    before, after = planned(), planned(finetune={"seeds": [0, 1], name: OTHER[name]})
    assert not set(ids(before, "finetune")) & set(ids(after, "finetune"))
    assert ids(before, "dataset") == ids(after, "dataset")
    assert ids(before, "predictions")[0] == ids(after, "predictions")[0]  # the base model's


def test_adapter_settings_mean_nothing_without_an_adapter() -> None:
    assert ids(planned(finetune={"method": "full", "lora_rank": 4})) == ids(planned(finetune={"method": "full"}))
    found = planned(grid={"finetune.method": ["full", "lora"], "finetune.lora_rank": [4, 8]}, finetune={})
    assert {artefact.labels["finetune"] for artefact in found.artefacts if artefact.kind == "finetune"} == {
        "full",
        "lora[lora_rank=4]",
        "lora[lora_rank=8]",
    }


@pytest.mark.parametrize("change", ["rows", "seed", "size", "law"])
def test_every_knob_of_a_task_changes_what_is_made_of_it(change: str) -> None:
    value: Any = "strict" if change == "law" else 11
    before = planned()
    after = planned(datasets={"ours": {"task": "toy", "rows": 20, change: value}, "other": {"task": "toy", "seed": 1}})
    assert ids(before, "dataset")[0] not in ids(after)
    assert not set(ids(before, "finetune")) & set(ids(after, "finetune"))


def test_law_and_base_model_are_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned()
    monkeypatch.setattr(Toy, "VERSION", 2)
    assert not set(ids(before)) & set(ids(planned()))
    monkeypatch.undo()
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(
        inputs, "resolve", lambda name, tokenizer=None: BaseModelRef("tiny", "/elsewhere", None, "sha256:def")
    )
    assert not set(ids(before)) & set(ids(planned()))
    monkeypatch.setattr(
        inputs, "resolve", lambda name, tokenizer=None: BaseModelRef("tiny", "/elsewhere", None, BASE.identity)
    )
    assert ids(before) == ids(planned())
    trusting = planned(trust_remote_code=True)
    assert not set(ids(before)) & set(ids(trusting))


@pytest.mark.parametrize(("name", "value"), [("MAX_OUTPUT_TOKENS", 9), ("STOP", ("\n",))])
def test_how_answers_are_decoded_is_identity_of_predictions_alone(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned()
    monkeypatch.setattr(Toy, name, value)
    after = planned()
    assert not set(ids(before, "predictions")) & set(ids(after, "predictions"))
    assert ids(before, "finetune") == ids(after, "finetune")


def test_a_source_counts_by_content_not_by_path(tmp_path: Path) -> None:
    for name, text in (("a", "1\n2\n"), ("b", "1\n2\n"), ("c", "1\n2\n3\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (planned(evaluate={"q": {"task": "quiz", "source": str(tmp_path / name)}}) for name in "abc")
    assert ids(a) == ids(b)
    assert next(x.rows for x in a.artefacts if x.kind == "predictions") == 2
    assert ids(a, "finetune") == ids(c, "finetune")
    assert not set(ids(a, "predictions")) & set(ids(c, "predictions"))
    assert str(tmp_path) not in json.dumps([x.recipe for x in a.artefacts])


def test_variants_share_what_they_can() -> None:
    found = planned(grid={"finetune.learning_rate": [1e-5, 5e-6], "evaluate.ask.size": [8, 9]})
    assert len(ids(found, "dataset")) == 2 + 2
    assert len(ids(found, "finetune")) == 2 * 4
    assert len(ids(found, "predictions")) == 2 * (1 + 8)
    labels = [artefact.labels for artefact in found.artefacts if artefact.kind == "predictions"]
    assert {label["evaluation"] for label in labels} == {"ask[size=8]", "ask[size=9]"}
    assert {label["finetune"] for label in labels} == {None, "lora[learning_rate=1e-05]", "lora[learning_rate=5e-06]"}
    assert len({tuple(label.items()) for label in labels}) == len(labels)


def test_mixtures_carry_what_is_varied_of_them_and_of_their_data() -> None:
    found = planned(grid={"datasets.ours.law": ["paper", "strict"], "mixtures.blend.other": [1, 3]}, finetune={})
    assert {artefact.labels["mixture"] for artefact in found.artefacts if artefact.kind == "finetune"} == {
        "ours[law=paper]",
        "ours[law=strict]",
        *(f"blend[other={w},ours.law={law}]" for w in ("1.0", "3.0") for law in ("paper", "strict")),
    }


def test_two_names_of_one_artefact_are_refused() -> None:
    with pytest.raises(InputError, match=r"mixtures.twice: found the same finetune as mixture ours"):
        planned(mixtures={"ours": {"ours": 1}, "twice": {"ours": 2}})
    with pytest.raises(InputError, match=r"datasets.b: found the same examples as datasets.a"):
        planned(datasets={"a": {"task": "toy"}, "b": {"task": "toy"}}, mixtures={"m": {"a": 1, "b": 1}})
    with pytest.raises(InputError, match=r"evaluate.b: found the same examples as evaluate.a"):
        planned(evaluate={"a": {"task": "toy", "seed": 5}, "b": {"task": "toy", "seed": 5}})


def test_training_on_the_evaluated_rows_is_refused_even_where_the_task_does_not_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Task, "overlaps", lambda self, other: None)
    with pytest.raises(InputError, match=r"evaluate.ask: found the very examples that datasets.ours trains on"):
        planned(evaluate={"ask": {"task": "toy", "rows": 20}})


def test_rows_and_tokens_are_counted_from_the_inputs() -> None:
    found = planned(finetune={"epochs": 2, "seeds": 0, "match": "rows"})
    by_name = {(x.kind, x.labels.get("dataset") or x.labels.get("mixture")): x for x in found.artefacts}
    assert (by_name["dataset", "other"].rows, by_name["dataset", "other"].tokens) == (30, 30 * 8)
    # blend takes 1 of ours to 3 of other, so other runs out first and ours is cut to 10.
    assert (by_name["finetune", "blend"].rows, by_name["finetune", "blend"].tokens) == (40, 2 * 40 * 8)
    assert (by_name["predictions", "blend"].rows, by_name["predictions", "blend"].tokens) == (5, 5 * 8)


def test_jobs_name_their_inputs() -> None:
    found = planned()
    for artefact in found.artefacts:
        if isinstance(artefact.params, FinetuneJob):
            named = [name for name, _ in (*artefact.params.mixture, *artefact.params.budget)]
            assert tuple(dict.fromkeys(named)) == artefact.needs
            assert sum(share for _, share in artefact.params.mixture) == pytest.approx(1)
            assert artefact.params.seed == artefact.labels["seed"] == artefact.recipe["seed"]
        elif isinstance(artefact.params, PredictionsJob):
            needs = (artefact.params.dataset_id, artefact.params.finetune_id)
            assert artefact.needs == tuple(need for need in needs if need)
            assert (artefact.params.finetune is None) == (artefact.params.finetune_id is None)
        else:
            assert artefact.params.recipe() == artefact.recipe["task"]


def test_the_document_comes_back_as_it_was_written(tmp_path: Path) -> None:
    found, store = planned(grid={"finetune.epochs": [1, 2]}), Store(tmp_path)
    store.write_document("sweeps/s.json", found.to_json())
    read = store.plan_document("s")
    assert (read["name"], read["base_model"]) == ("s", "tiny")
    assert [(a.id, a.fingerprint, a.needs, a.labels, a.rows) for a in described(read)] == [
        (a.id, a.fingerprint, a.needs, a.labels, a.rows) for a in found.artefacts
    ]
    assert Sweep.model_validate(read["sweep"]) == found.sweep
    for broken in (b"", b"[]", b'{"format": 1}', b'{"format": 99}'):
        store.write_document("sweeps/s.json", broken)
        with pytest.raises(StoreError, match=r"sweeps/s\.json in .* is no plan document"):
            store.plan_document("s")


def test_without_training_data_the_base_model_is_evaluated() -> None:
    found = planned(datasets={}, mixtures={})
    assert [artefact.kind for artefact in found.artefacts] == ["dataset", "predictions"]


def test_gathering_tells_every_unreadable_source_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str, tokenizer: str | None = None) -> BaseModelRef:
        raise InputError(f"base_model: {name} is nowhere")

    monkeypatch.setattr(inputs, "resolve", nowhere)
    (tmp_path / "empty").write_text("")
    sources = {"gone": tmp_path / "gone", "empty": tmp_path / "empty"}
    sweep = sweep_of(
        evaluate={name: {"task": "quiz", "source": str(path)} for name, path in sources.items()},
        grid={"evaluate.gone.seed": [1, 2]},
    )
    with pytest.raises(InputError) as caught:
        gather(sweep)
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0] == "base_model: tiny is nowhere"
    assert caught.value.problems[1].startswith("evaluate.gone: ")
    assert caught.value.problems[2] == "evaluate.empty: found no example; expected at least one"


def test_inputs_cover_every_variant() -> None:
    sweep = sweep_of(grid={"datasets.ours.rows": [3, 4]})
    inputs = gather(sweep)
    assert isinstance(inputs, Inputs)
    counts = {inputs.of(variant.sweep.datasets["ours"]).lengths.rows for variant in variants(sweep)}
    assert counts == {3, 4}


def test_a_plan_of_a_thousand_cells_takes_seconds() -> None:
    found = planned(grid={"finetune.batch_size": list(range(1, 251))})
    assert len(ids(found, "predictions")) == 1 + 250 * 4


def test_what_is_varied_of_the_first_mixture_names_those_matched_to_it() -> None:
    varied = {"datasets.ours.rows": [10, 20]}
    matched = planned(mixtures={"ours": {"ours": 1}, "other": {"other": 1}}, grid=varied, finetune={"seeds": [0]})
    cells = [a for a in matched.artefacts if a.kind == "predictions"]
    assert len({tuple(a.labels.values()) for a in cells}) == len(cells) == 5
    assert {a.labels["mixture"] for a in cells} == {
        None,
        *("ours[rows=10]", "ours[rows=20]", "other[ours.rows=10]", "other[ours.rows=20]"),
    }
    # Without a budget the second mixture is one and the same in both variants.
    rows = {"seeds": [0], "match": "rows"}
    alone = planned(mixtures={"ours": {"ours": 1}, "other": {"other": 1}}, grid=varied, finetune=rows)
    mixtures = {a.labels["mixture"] for a in alone.artefacts if a.kind == "finetune"}
    assert mixtures == {"ours[rows=10]", "ours[rows=20]", "other"}
    both = {"ours": {"ours": 1}, "blend": {"ours": 1, "other": 3}}
    names = {a.labels["mixture"] for a in planned(mixtures=both, grid=varied).artefacts if a.kind == "finetune"}
    assert names == {"ours[rows=10]", "ours[rows=20]", "blend[ours.rows=10]", "blend[ours.rows=20]"}


def test_merged_adapters_are_in_the_recipe_of_the_evaluations_that_are_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvray.planning.plan.MERGED_ROWS", 100)
    evaluate = {name: {"task": "toy", "rows": rows, "seed": 9} for name, rows in (("short", 99), ("long", 100))}

    def merged(**changes: Any) -> set[str]:
        cells = [each for each in planned(evaluate=evaluate, **changes).artefacts if each.kind == "predictions"]
        return {each.labels["evaluation"] for each in cells if each.recipe.get("adapters") == "merged"}

    def base_ids(**changes: Any) -> list[str]:
        return [each.id for each in planned(evaluate=evaluate, **changes).artefacts if not each.labels.get("mixture")]

    assert merged() == set() and merged(adapters="auto") == {"long"} and merged(adapters="merged") == {"short", "long"}
    assert merged(adapters="merged", finetune={"method": "attention"}) == set()
    assert ids(planned()) == ids(planned(adapters="batched")) != ids(planned(adapters="merged"))
    assert base_ids(adapters="merged") == base_ids()
