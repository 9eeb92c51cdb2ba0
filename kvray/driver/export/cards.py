"""The cards of what is exported: README.md as the Hugging Face hub shows it, with its metadata first."""

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from kvray import __version__
from kvray.driver.export import parts
from kvray.driver.export.data import Written
from kvray.driver.export.find import Found
from kvray.driver.export.scores import Scores
from kvray.driver.export.weights import ADAPTER_CONFIG, Weights
from kvray.models.lora import ENGINE_RANKS
from kvray.models.reference import BUNDLED, BaseModelRef
from kvray.store.manifest import Manifest
from kvray.sweep.yaml import dump

License = dict[str, str]
"""Fields of a card's metadata: license, license_name, license_link; empty if it is unknown."""
_TAGS = ["kvray", "long-context", "retrieval"]
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
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
    license: License,
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
        **dict[str, Any](license),
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
        data=parts.data_table(facts, read, manifests),
        data_text=parts.trained(facts),
        recipe=dump(parts.recipe_of(found, weights.base or _short(base), read, manifests)).strip(),
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


def data_card(found: Found, written: Written, columns: str, *, place: str, license: License, tokenizer: str) -> str:
    """Return the card of a dataset or a mixture; arguments as for :func:`model_card`."""
    from huggingface_hub import DatasetCardData

    title = f"{found.name} of the kvray sweep {found.sweep}"
    size = next((name for limit, name in _SIZES.items() if written.rows < limit), "10M<n<100M")
    data = DatasetCardData(
        pretty_name=title,
        size_categories=[size],
        task_categories=["question-answering", "text-generation"],
        tags=[*_TAGS, "synthetic"],
        configs=[{"config_name": "default", "data_files": [{"split": written.split, "path": written.file}]}],
        **dict[str, Any](license),
    )
    mixture = found.what == "mixture"
    intro = f"`{found.name}`, a dataset of the kvray sweep `{found.sweep}`, made by kvray {_version(found.manifest)}."
    if mixture:
        intro = (
            f"One epoch of the mixture `{found.planned.labels['mixture']}` of the kvray sweep `{found.sweep}`: the "
            f"very rows that its finetune with seed {found.planned.labels['seed']} read, dataset by dataset."
        )
    tasks = {part["name"]: part["manifest"].recipe.get("task", {}) for part in written.parts}
    first = json.dumps(parts.shortened(written.first), ensure_ascii=False, indent=1)
    sources = [
        [f"{source} of {part['name']}, by its content", f"`{digest}`"]
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
            ["dataset", "task", "rows", *(["tokens, chat template included"] if mixture else [])],
            *(
                [f"`{part['name']}`", parts.task_of(part["manifest"]), f"{part['rows']:,}"]
                + ([f"{part['tokens']:,}"] if mixture else [])
                for part in written.parts
            ),
        ],
        axes=parts.axes_table(written),
        cut=first != json.dumps(written.first, ensure_ascii=False, indent=1),
        first=parts.fenced(first, "json"),
        recipe=dump({"datasets": tasks}).strip(),
        license_text=parts.data_licence(license),
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


def license_of(base: BaseModelRef) -> License:
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
    environment.globals["table"] = parts.table
    source = (resources.files("kvray.driver.export") / template).read_text("utf-8")
    body = environment.from_string(source).render(**values)
    return f"---\n{metadata.strip()}\n---\n\n{re.sub(chr(10) + '{3,}', chr(10) * 2, body)}"


def _engine_rank(folder: Path) -> int:
    rank = int(json.loads((folder / ADAPTER_CONFIG).read_text())["r"])
    return next(size for size in ENGINE_RANKS if size >= rank)


def _version(manifest: Manifest) -> str:
    return str(manifest.measurements.get("versions", {}).get("kvray", __version__))


def _versions(manifest: Manifest) -> str:
    shown = ("kvray", "python", "torch", "transformers", "peft")
    versions = manifest.measurements.get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions) or "not recorded"
