"""docs/security.md: every claim of it that a test can show, with files made to do harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_sweeps import MakeSweep, make_sweep

from kvray.driver import run as running
from kvray.errors import CellError, DamagedArtefactError, InputError, StoreError
from kvray.models.reference import resolve
from kvray.report import build
from kvray.report.blocks import Bullets, Code, Details, Figure, Table, Text
from kvray.report.page.html import to_html
from kvray.store import failures
from kvray.store.manifest import parse
from kvray.store.store import Store
from kvray.sweep.load import read
from kvray.tasks.sources import read as sources
from kvray.tasks.sources import records

__all__ = ["make_sweep"]
ROOT = Path(__file__).parent.parent
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAsecretsecret1",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-secret-2",
    "HF_TOKEN": "hf_secretsecret3",
    "OPENAI_API_KEY": "sk-secretsecret4",
}
SWEEP = """\
name: hostile
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 16, dictionaries: 4}}
finetune: {epochs: 1}
evaluate: {mdqa: {task: mdqa, source: tiny, documents: 3, questions: 10}}
"""
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def sweep(folder: Path, text: str) -> str:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return str(file)


def test_a_model_s_own_code_runs_only_where_the_command_line_allows_it(tmp_path: Path) -> None:
    file = sweep(tmp_path, SWEEP + "trust_remote_code: true\n")
    with pytest.raises(InputError, match=r"trust_remote_code: found true.*type --allow-code"):
        read(file)
    assert read(file, allow_code=True).sweep.trust_remote_code


@pytest.mark.parametrize("name", ["utils.py", "more/qa.yaml"])
def test_task_files_with_code_load_only_where_the_command_line_allows_it(tmp_path: Path, name: str) -> None:
    tasks = tmp_path / "tasks"
    (tasks / "more").mkdir(parents=True)
    (tasks / "qa.yaml").write_text("task: qa\n")
    text = SWEEP.replace("evaluate: {", f"evaluate: {{own: {{task: lm_eval, benchmark: qa, include_path: {tasks}}}, ")
    assert read(sweep(tmp_path, text)).sweep.name == "hostile"
    (tasks / name).write_text("process_docs: !function utils.run\n")
    with pytest.raises(InputError, match=f"{Path(name).name}.*type --allow-code"):
        read(sweep(tmp_path, text))


def test_pickled_weights_of_a_base_model_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in Path(resolve("kvray-tiny").here().location).iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04c__main__\n")
    with pytest.raises(InputError, match=r"pickled weights \(pytorch_model.bin\).*expected safetensors"):
        resolve(str(model))


def test_pickled_weights_are_asked_of_no_library(tmp_path: Path) -> None:
    from kvray.evaluate.engines.base import Adapter, Serving
    from kvray.evaluate.engines.vllm import VllmEngine, model_options
    from kvray.sweep.model import Runtime

    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04c__main__\n")
    with pytest.raises(CellError, match="expected safetensors"):
        VllmEngine.load(object.__new__(VllmEngine), Adapter("a", 1, tmp_path))
    options = model_options(Serving(resolve("kvray-tiny"), Runtime(), 0, 1.0, ()))
    assert options["load_format"] == "safetensors" and options["trust_remote_code"] is False
    loads = (ROOT / "kvray/finetune/model.py").read_text()
    assert "use_safetensors=True" in loads


def test_nothing_of_ours_is_pickled_or_run_from_text() -> None:
    for file in (ROOT / "kvray").rglob("*.py"):
        code = file.read_text()
        assert not re.search(
            r"\b(pickle|marshal|shelve|dill)\.(load|dump)|torch\.(load|save)\(|yaml\.(load|unsafe)", code
        )
        assert not re.search(r"(?<![\w.])(eval|exec)\(|os\.system|shell=True", code) or file.name == "code.py", file


@pytest.mark.parametrize("variable", [*SECRETS, "DB_PASSWORD", "GOOGLE_APPLICATION_CREDENTIALS", "MY_PRIVATE_KEY"])
def test_a_sweep_cannot_name_a_secret_of_the_environment(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "a-secret")
    with pytest.raises(InputError, match="the name of a secret") as refused:
        read(sweep(tmp_path, SWEEP.replace("source: tiny", f'source: "https://thief/${{{variable}:-x}}"')))
    assert "a-secret" not in str(refused.value)


def test_other_variables_are_taken_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENIZER", "NQ_OPEN", "MONKEY"):
        monkeypatch.setenv(name, "tiny")
        assert read(sweep(tmp_path, SWEEP.replace("source: tiny", f'source: "${{{name}}}"'))).sweep.name == "hostile"


def test_keys_are_nowhere_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    store = Store(tmp_path / "store")
    planned, _ = running.prepare(sweep(tmp_path, SWEEP))
    store.write_document("sweeps/hostile.json", planned.to_json())
    for artefact in planned.artefacts[:2]:
        entry = store.write(artefact.id, "part", b"x")
        store.commit(**artefact.identity(), files=[entry])
    failures.note(store, planned.artefacts[-1].id, f"the API said: {SECRETS['OPENAI_API_KEY']}")
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"hostile" in written
    assert not [name for name, value in SECRETS.items() if value.encode() in written]


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../out", "a//b", ".", "a\\b", "a\nb"])
def test_no_name_leads_out_of_a_store(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for attempt in (
        lambda: store.write("datasets/a-0123456789abcdef", name, b"x"),
        lambda: store.write_document(f"reports/{name}", b"x"),
        lambda: store.read_document(f"reports/{name}"),
    ):
        with pytest.raises(StoreError):
            attempt()
    assert not list(tmp_path.rglob("out"))


@pytest.mark.parametrize("name", ["../../.bashrc", "/root/.bashrc", "a/../../b", "..\\b", ""])
def test_a_manifest_that_lists_a_file_elsewhere_is_damaged(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    planned, _ = running.prepare(sweep(tmp_path, SWEEP))
    (artefact, *_) = planned.artefacts
    store.commit(**artefact.identity(), files=[store.write(artefact.id, "part", b"x")])
    manifest = Path(store.path(artefact.id, "manifest.json"))
    values = json.loads(manifest.read_bytes())
    values.pop("checksum")
    values["files"][0]["name"] = name
    from kvray.store.fingerprint import canonical_json

    values["checksum"] = hashlib.sha256(canonical_json(values)).hexdigest()  # whoever may write it can reckon, too
    with pytest.raises(DamagedArtefactError, match="not inside the artefact"):
        parse(json.dumps(values).encode(), artefact.id)


def test_names_of_a_sweep_cannot_be_paths(tmp_path: Path) -> None:
    for text in (SWEEP.replace("hostile", "../../out"), SWEEP.replace("{kv: {task", "{../kv: {task")):
        with pytest.raises(InputError, match="letters, digits"):
            read(sweep(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
        "a: " + "[" * 100_000 + "]" * 100_000,
        "a: " + "{a: " * 5_000 + "}" * 5_000,
        "a: &a {b: *a}",
        "a: [" + "1," * 100_000 + "]",
        "x" * (2**20 + 1),
        "a: !!python/object/apply:os.system ['touch /tmp/out']",
        "a: " + "9" * 100_000,
    ],
    ids=["laughs", "depth", "mappings", "circle", "values", "bytes", "tag", "digits"],
)
def test_yaml_that_explodes_is_refused_at_once(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read(sweep(tmp_path, f"{SWEEP}{text}\n"))


def bomb(count: int) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as stream:
        for _ in range(count):
            stream.write(bytes(2**20))
    return packed.getvalue()


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "text.txt.gz", "inner.zip"])
def test_an_archive_that_expands_without_bound_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SMALL", 4 * 2**20)
    file = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.jsonl", bytes(32 * 2**20))
    else:
        file.write_bytes(bomb(32))
    with pytest.raises(InputError, match="expected less than 200 times as many"):
        sources.texts(str(file)) if ".txt" in name else list(sources.rows(str(file)))


def test_what_packs_well_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SMALL", 2**20)
    rows = [
        {"text": f"{np.random.default_rng(row).integers(10**9)} is the number, as was said before. " * 20}
        for row in range(2000)
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data, 9))
    assert len(data) > 2**20 and [row for _, row in sources.rows(str(tmp_path / "rows.jsonl.gz"))] == rows


def test_names_in_an_archive_are_only_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("../../out.jsonl", '{"a": 1}\n')
        archive.writestr("/etc/out.jsonl", '{"a": 2}\n')
    assert {row["a"] for _, row in sources.rows(str(tmp_path / "rows.zip"))} <= {1, 2}
    assert [path.name for path in tmp_path.rglob("*")] == ["rows.zip"]


def test_what_a_report_quotes_is_escaped() -> None:
    from matplotlib.figure import Figure as Chart

    chart = Chart()
    axes = chart.subplots()
    axes.set_title(HOSTILE)
    axes.set_xlabel("</text></svg>" + HOSTILE)
    quoted = [Text(HOSTILE), Bullets([HOSTILE]), Table([HOSTILE], [[HOSTILE]]), Code(HOSTILE)]
    page = to_html(HOSTILE, [*quoted, Details(HOSTILE, quoted), Figure(chart, HOSTILE, HOSTILE)])
    assert "<script>alert" not in page.lower() and "<img" not in page.lower()
    assert page.lower().count("<script") == 1  # the page's own, which its policy names by its hash
    assert page.count("&lt;script&gt;") >= 4


def test_what_a_hostile_store_says_does_not_act_in_the_page(tmp_path: Path, make_sweep: MakeSweep) -> None:
    store = Store(tmp_path)
    (one, *_) = [each for each in make_sweep(store, skip=["mdqa20-mdqa-s1"]) if "mdqa20-mdqa-s1" in each]
    store.write_document(f"failures/{one}.json", json.dumps({"error": HOSTILE}).encode())
    page = Path(build.write(store, "first").html).read_text()
    assert "<script>alert" not in page and "onerror=alert(1)>" not in page and "&lt;script&gt;" in page
