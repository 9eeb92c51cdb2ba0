"""Where things are: a store in a bucket, a base model on the hub, weights behind an API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import shipped_store as shipped
import torch
import yaml
from s3_server import BUCKET, endpoint

from kvray.driver.export.export import Options, export
from kvray.errors import InputError
from kvray.models.reference import BUNDLED, resolve
from kvray.planning.artefacts import FinetuneJob
from kvray.store.store import Store

__all__ = ["endpoint"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_store_in_a_bucket_gives_the_bytes_of_one_on_a_disk(store: Store, out: Path, endpoint: str) -> None:
    remote = Store(f"s3://{BUCKET}/ship?endpoint_override=http://{endpoint}&scheme=http")
    pafs.copy_files(store.root, remote.root, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=remote.fs)
    for name, options in (("small/kv/1", Options()), ("small/datasets/kv", Options(columns="messages"))):
        made = [export(each, name, out / f"remote-{each.remote}", options) for each in (store, remote)]
        files = [{file: Path(done.path, file).read_bytes() for file in done.files} for done in made]
        assert files[0] == files[1] and len(files[0]) > 2
        shutil.rmtree(out)


def test_an_adapter_names_its_base_by_hub_id_and_commit(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from peft import AutoPeftModelForCausalLM

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(BUNDLED["kvray-tiny"], home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    one = {"datasets": {"kv": shipped.SWEEP["datasets"]["kv"]}, "mixtures": {"kv": {"kv": 1}}, "evaluate": {}}
    store = Store(tmp_path / "store")
    shipped.fill(store, shipped.planned(**one, base_model="me/tiny", finetune={}), resolve("me/tiny"))
    # The hub has moved on: the export keeps to the commit that was trained on.
    shutil.copytree(home / "snapshots" / COMMIT, home / "snapshots" / COMMIT[::-1])
    (home / "refs" / "main").write_text(COMMIT[::-1])
    done = export(store, "small/kv", out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/tiny", COMMIT)
    assert not any(name.startswith("base/") for name in done.files) and not any(
        "licence" in note for note in done.notes
    )
    card = (out / "README.md").read_text()
    assert "base_model: me/tiny" in card and "# tiny finetuned on kv" in card and "not been evaluated" in card
    assert "AutoPeftModelForCausalLM.from_pretrained(folder" in card
    with torch.no_grad():
        assert AutoPeftModelForCausalLM.from_pretrained(out)(torch.arange(100, 110)[None]).logits.isfinite().all()
    shutil.rmtree(home)
    with pytest.raises(InputError, match=rf"me/tiny at {COMMIT} is not to be had .*hf download me/tiny --revision"):
        export(store, "small/kv", out, Options(force=True, merged=True))
    assert (out / "adapter_config.json").is_file()


def test_what_an_api_has_finetuned_says_where_its_weights_are(store: Store, out: Path, tmp_path: Path) -> None:
    own = Store(shutil.copytree(store.root, tmp_path / "api"))
    of = shipped.planned()
    artefact = next(each for each in of.artefacts if isinstance(each.params, FinetuneJob))
    own.discard(artefact.id)
    entry = own.write(artefact.id, "model.json", b'{"model": "ft:gpt:me"}')
    identity = {**artefact.identity(), "recipe": {**artefact.recipe, "base": "openai:gpt"}}
    own.commit(**identity, files=[entry], measurements={"model": "ft:gpt:me"})
    with pytest.raises(InputError, match="the weights of ft:gpt:me stay with the API"):
        export(own, artefact.id, out)
    assert not out.exists()


def test_an_artefact_without_weights_is_damaged(store: Store, out: Path, tmp_path: Path) -> None:
    from kvray.errors import DamagedArtefactError

    own = Store(shutil.copytree(store.root, tmp_path / "empty"))
    artefact = next(each for each in shipped.planned().artefacts if isinstance(each.params, FinetuneJob))
    own.discard(artefact.id)
    own.commit(**artefact.identity(), files=[own.write(artefact.id, "notes.txt", b"lost")])
    with pytest.raises(DamagedArtefactError, match="holds neither an adapter nor a model"):
        export(own, artefact.id, out)
    assert not out.exists()


def test_a_sweep_whose_tasks_are_not_here_is_written_with_a_word_on_their_code(
    store: Store, out: Path, tmp_path: Path
) -> None:
    own = Store(shutil.copytree(store.root, tmp_path / "code"))
    document = json.loads(own.read_document("sweeps/small.json") or b"")
    document["sweep"]["datasets"]["mine"] = {"task": "no_such_module:Mine", "rows": 3}
    own.write_document("sweeps/small.json", json.dumps(document).encode())
    export(own, "small/datasets/kv", out)
    text = (out / "sweep.yaml").read_text()
    assert "their code belongs beside this file" in text
    written = yaml.safe_load(text)
    assert written["datasets"]["mine"]["task"] == "no_such_module:Mine" and "runtime" not in written
