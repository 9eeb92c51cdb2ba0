"""The cards of what is exported: README.md as the Hugging Face hub shows it, with its metadata first."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from kvray import __version__
from kvray.driver.export.data import Written
from kvray.driver.export.find import Found
from kvray.driver.export.scores import Scores
from kvray.driver.export.weights import ADAPTER_CONFIG, Weights
from kvray.models.lora import ENGINE_RANKS
from kvray.models.reference import BUNDLED, BaseModelRef
from kvray.store.manifest import Manifest
from kvray.sweep.yaml import dump

_TAGS = ["kvray", "long-context", "retrieval"]
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_CUT = 400  # characters of each text of a card's first row
_MOST_PLACES = 12  # of an axis that are listed one by one
_FORMS = {
    "adapter": "A LoRA adapter of {parameters} parameters for {base}.",
    "merged": "{base} with a LoRA adapter merged into its weights: {parameters} parameters.",
    "whole": "{base} finetuned ({method}): {parameters} parameters.",
}


def model_card(
    found: Found,
    base: BaseModelRef,
    weights: Weights,
    folder: Path,
    scores: Scores,
    *,
    place: str,
    license: Mapping[str, str],
    dataset_ids: Sequence[str] = (),
) -> str:
    """Return the card of a finetune that lies in ``folder``.

    ``place`` is the repository that it goes to, "." if none; ``license`` has the fields of the metadata, empty if the
    licence is unknown; ``dataset_ids`` are the hub's ids of its data.
    """
    from huggingface_hub import EvalResult, ModelCardData

    facts, recipe = found.manifest.measurements, found.manifest.recipe
    adapter, labels = weights.form == "adapter", found.planned.labels
    named = weights.base or base_label(base)
    manifests = {need: found.store.manifest(need) for need in found.manifest.needs}
    names = {each["id"]: str(each["labels"].get("dataset")) for each in found.document["artefacts"]}
    read = {need: names.get(need, need) for need in facts.get("datasets") or found.manifest.needs}
    title = f"{(weights.base or _short(base)).rpartition('/')[2]} finetuned on {found.name}"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=evaluation,
            dataset_name=f"{evaluation} (kvray sweep {found.sweep})",
            metric_type="accuracy",
            metric_value=round(accuracy, 4),
        )
        for evaluation, accuracy in scores.accuracies.items()
    ]
    data = ModelCardData(
        base_model=weights.base,
        datasets=list(dataset_ids) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS, *(["lora"] if recipe["finetune"].get("method") == "lora" else [])],
        model_name=title,
        eval_results=results or None,
        **license,
    )
    form = _FORMS[weights.form].format(
        parameters=f"{weights.parameters:,}", base=named, method=f"method {recipe['finetune'].get('method')}"
    )
    return _card(
        "model.md.jinja",
        data.to_yaml(),
        title=title,
        form_text=form,
        form=weights.form,
        kvray=_version(found.manifest),
        mixture=labels["mixture"],
        seed=labels["seed"],
        sweep=found.sweep,
        place=place,
        beside=weights.beside,
        base_id=weights.base,
        max_rank=_engine_rank(folder) if adapter else 0,
        served=re.sub(r"[^\w.-]+", "-", found.name),
        scores=scores,
        data=_data_table(facts, read, manifests),
        data_text=_trained(facts),
        recipe=dump(_recipe(found, weights.base or _short(base), read, manifests)).strip(),
        license=license,
        provenance=[
            ["what", "value"],
            ["artefact", f"`{found.manifest.id}`"],
            ["fingerprint", f"`{found.manifest.fingerprint}`"],
            ["base model", f"{named}, `{base.identity}`"],
            ["data", ", ".join(f"`{need}`" for need in read)],
            ["made", f"{found.manifest.created}, on {facts.get('device', 'an unknown device')}"],
            ["versions", _versions(found.manifest)],
            ["exported", f"by kvray {__version__}"],
        ],
    )


def data_card(
    found: Found, written: Written, columns: str, *, place: str, license: Mapping[str, str], tokenizer: str
) -> str:
    """Return the card of a dataset or a mixture; arguments as for :func:`model_card`."""
    from huggingface_hub import DatasetCardData

    title = f"{found.name} of the kvray sweep {found.sweep}"
    size = next((name for limit, name in _SIZES.items() if written.rows < limit), "10M<n<100M")
    data = DatasetCardData(
        pretty_name=title,
        size_categories=size,
        task_categories=["question-answering", "text-generation"],
        tags=[*_TAGS, "synthetic"],
        configs=[{"config_name": "default", "data_files": [{"split": written.split, "path": written.file}]}],
        **license,
    )
    mixture = found.what == "mixture"
    intro = f"`{found.name}`, a dataset of the kvray sweep `{found.sweep}`, made by kvray {_version(found.manifest)}."
    if mixture:
        intro = (
            f"One epoch of the mixture `{found.planned.labels['mixture']}` of the kvray sweep `{found.sweep}`: the "
            f"very rows that its finetune with seed {found.planned.labels['seed']} read, dataset by dataset."
        )
    tasks = {part["name"]: part["manifest"].recipe.get("task", {}) for part in written.parts}
    first = json.dumps(_shortened(written.first), ensure_ascii=False, indent=1)
    sources = [
        [f"{source} of {part['name']}", f"sha256 `{digest}`"]
        for part in written.parts
        for source, digest in part["manifest"].recipe.get("sources", {}).items()
    ]
    return _card(
        "data.md.jinja",
        data.to_yaml(),
        title=title,
        intro=intro,
        written=written,
        tokenizer=tokenizer,
        columns=columns,
        place=place,
        fields=[
            ["column", "type", "what it holds"],
            *(
                [f"`{field.name}`", f"`{field.type}`", (field.metadata or {}).get(b"description", b"").decode()]
                for field in written.columns
            ),
        ],
        parts=[
            ["dataset", "task", "rows", "tokens, chat template included"],
            *(
                [
                    f"`{part['name']}`",
                    _task(part["manifest"]),
                    f"{part['rows']:,}",
                    f"{part['tokens']:,}" if part["tokens"] else "not counted",
                ]
                for part in written.parts
            ),
        ],
        axes=_axes_table(written),
        cut=first != json.dumps(written.first, ensure_ascii=False, indent=1),
        first=_fenced(first, "json"),
        recipe=dump({"datasets": tasks}).strip(),
        license_text=_data_licence(license),
        provenance=[
            ["what", "value"],
            *(["dataset", f"`{part['id']}`, made {part['manifest'].created}"] for part in written.parts),
            *sources,
            *([["finetune", f"`{found.manifest.id}`"]] if mixture else []),
            ["versions", _versions(found.manifest)],
            ["exported", f"by kvray {__version__}"],
        ],
    )


def base_label(base: BaseModelRef) -> str:
    """Return what a card calls a base model: no path of this machine."""
    return f"{base.name} (bundled with kvray)" if base.name in BUNDLED else _short(base)


def _short(base: BaseModelRef) -> str:
    return base.location if base.revision is not None else base.name if base.name in BUNDLED else Path(base.name).name


def license_of(base: BaseModelRef) -> dict[str, str]:
    """Return the licence fields of a base model's card, empty if it has none or cannot be read now."""
    from huggingface_hub import HfApi, ModelCard

    here = base.here()
    try:
        if here.revision is None:
            card = Path(here.location, "README.md")
            found = ModelCard.load(card, ignore_metadata_errors=True).data if card.is_file() else None
        else:
            found = HfApi().model_info(here.location, revision=here.revision, timeout=20).card_data
    except Exception:  # a hub out of reach raises whatever its HTTP library does; the card says that it is unknown
        found = None
    values = found.to_dict() if found is not None else {}
    return {name: str(values[name]) for name in ("license", "license_name", "license_link") if values.get(name)}


def _card(template: str, metadata: str, **values: Any) -> str:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals["table"] = _table
    source = (resources.files("kvray.driver.export") / template).read_text("utf-8")
    body = environment.from_string(source).render(**values)
    return f"---\n{metadata.strip()}\n---\n\n{re.sub(chr(10) + '{3,}', chr(10) * 2, body)}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first row is its header; cells cannot leave their column."""
    head, *body = ([_cell(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if re.fullmatch("`[^`]*`", line) else line.replace("<", "&lt;")  # in code a < is one already


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return f"{value[:_CUT]} […]" if isinstance(value, str) and len(value) > _CUT else value


def _task(manifest: Manifest | None) -> str:
    return str(manifest.recipe["task"]["task"]) if manifest and "task" in manifest.recipe else "unknown"


def _data_table(
    facts: Mapping[str, Any], read: Mapping[str, str], manifests: Mapping[str, Manifest | None]
) -> list[list[str]]:
    rows = [["dataset", "task", "rows per epoch", "tokens per epoch"]]
    for need, name in read.items():
        sizes = (facts.get("datasets") or {}).get(need, {})
        numbers = [f"{sizes[key]:,}" if key in sizes else "not counted" for key in ("rows", "tokens")]
        rows.append([f"`{name}`", _task(manifests.get(need)), *numbers])
    return rows


def _trained(facts: Mapping[str, Any]) -> str:
    if "trained_tokens" not in facts or "steps" not in facts:
        return "How many tokens it was trained on is not recorded."
    text = f"In all {facts['trained_tokens']:,} tokens in {facts['steps']:,} steps, chat template included"
    if "answer_tokens" in facts:
        text += f"; the loss is on the answers alone, {facts['answer_tokens']:,} tokens of an epoch"
    if isinstance(facts.get("loss_last_epoch"), float):
        text += f", and was {facts['loss_last_epoch']:.3g} nats per token in the last epoch"
    if facts.get("budget_tokens"):
        text += f". An epoch is cut to about {facts['budget_tokens']:,} tokens, those of the sweep's first mixture"
    return f"{text}."


def _recipe(
    found: Found, base: str, read: Mapping[str, str], manifests: Mapping[str, Manifest | None]
) -> dict[str, Any]:
    recipe = found.manifest.recipe
    shares = dict(zip(found.manifest.needs, recipe["mixture"], strict=False))
    tasks = {name: manifest.recipe.get("task", {}) for need, name in read.items() if (manifest := manifests.get(need))}
    return {
        "base_model": base,
        "datasets": tasks,
        "mixture": {read.get(need, need): share for need, share in shares.items()},
        "finetune": recipe["finetune"],
        "seed": recipe["seed"],
    }


def _axes_table(written: Written) -> list[list[str]]:
    """Return how the examples spread over positions, lengths and so on; what is the same of all is left out."""
    rows = []
    for axis, places in written.axes.items():
        names = [place if isinstance(place, str) else f"{place:g}" for place, _ in places]
        if len(places) > _MOST_PLACES:
            words = isinstance(places[0][0], str)
            rows.append([axis, f"{len(places):,} kinds" if words else f"{names[0]} to {names[-1]}"])
        elif len(places) > 1:
            counts = (f"{name}: {number:,}" for name, (_, number) in zip(names, places, strict=True))
            rows.append([axis, ", ".join(counts)])
    return [["axis", "rows by place"], *rows] if rows else []


def _data_licence(license: Mapping[str, str]) -> str:
    if license:
        return f"The licence, {license['license']}, was given by whoever exported them."
    return (
        "No licence is stated. Where the examples quote sources (`sweep.yaml` says which), these have licences of "
        "their own: look there before you share them."
    )


def _engine_rank(folder: Path) -> int:
    rank = int(json.loads((folder / ADAPTER_CONFIG).read_text())["r"])
    return next(size for size in ENGINE_RANKS if size >= rank)


def _version(manifest: Manifest) -> str:
    return str(manifest.measurements.get("versions", {}).get("kvray", __version__))


def _versions(manifest: Manifest) -> str:
    shown = ("kvray", "python", "torch", "transformers", "peft")
    versions = manifest.measurements.get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions) or "not recorded"
