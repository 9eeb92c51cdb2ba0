"""Sources: the same rows from wherever they lie, and an error that says whether to mend the file or to wait."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvray.errors import InputError, SourceUnreachableError
from kvray.tasks.sources import read

ROWS = [{"n": 1, "text": "one\u2028line"}, {"n": 2, "text": "two"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
COMMIT = "c0ffee" * 6 + "beef"


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)  # noqa: TID251 (a user's file, not the store's)
    return sink.getvalue()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def rows(source: Path | str) -> list[dict]:
    return [row for _, row in read.rows(str(source))]


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, tuple[int, bytes]]], tuple[str, list[str]]]]:
    """Serve (status, body) by path; return the address and the list of what was asked."""
    servers = []

    def start(answers: dict[str, tuple[int, bytes]]) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(f"{self.command} {self.path}")
                status, body = answers.get(self.path.partition("?")[0], (404, b"no"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{abs(hash(body))}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a#1?.jsonl", LINES),
        ("lines.json", LINES),
        ("array.json", json.dumps(ROWS, indent=1).encode()),
        ("array.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("a.parquet", parquet_bytes()),
        ("a.jsonl.zst", pa.Codec("zstd").compress(LINES, asbytes=True)),
        ("a.zip", zip_bytes({"b/2.jsonl": LINES[LINES.index(b"\n") + 1 :], "b/1.jsonl": LINES.split(b"\n")[0]})),
        ("a.zip", zip_bytes({"FLenQA": LINES, "__MACOSX/._FLenQA": b"\0"})),
        ("a.zip", zip_bytes({"data/rows.dat": b"\n" + json.dumps(ROWS).encode()})),
        ("a.zip", zip_bytes({"d.jsonl": LINES, "__MACOSX/._d.jsonl": b"\0", ".d.jsonl": b"\0", "read.me": b"x"})),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert rows(tmp_path / name) == ROWS
    assert rows(tmp_path) == ROWS, "a directory stands for its files"


def test_files_of_a_directory_come_sorted_by_name_and_descriptions_are_no_data(tmp_path: Path) -> None:
    for name, text in {"b.jsonl": '{"n": 2}', "a/z.jsonl": '{"n": 1}', "dataset_infos.json": '{"n": 0}'}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = list(read.rows(str(tmp_path)))
    assert [row for _, row in found] == [{"n": 1}, {"n": 2}]
    assert found[0][0] == f"{tmp_path / 'a' / 'z.jsonl'}: row 1"


def test_one_object_in_a_json_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=2))
    assert rows(tmp_path / "one.json") == ROWS[:1]


def test_tables_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "t.csv").write_text(f'\ufeffprompt,answer\n"a, b\n""c""",{long}\n', encoding="utf-8")
    assert [row for _, row in read.rows(str(tmp_path / "t.csv"), tables=True)] == [
        {"prompt": 'a, b\n"c"', "answer": long}
    ]
    with pytest.raises(InputError, match=r"expected \.jsonl"):
        rows(tmp_path / "t.csv")
    for torn in ("a,b\n1\n", "a,b\n1,2,3\n"):
        (tmp_path / "t.csv").write_text(torn)
        with pytest.raises(InputError, match="a row with other than 2 fields"):
            list(read.rows(str(tmp_path / "t.csv"), tables=True))


def test_texts_are_files_or_fields_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    essays = tmp_path / "essays"
    essays.mkdir()
    (essays / "b.txt").write_text("second")
    (essays / "a.txt").write_text("\ufefffirst", encoding="utf-8")
    (essays / "c.txt").write_text(" \n")
    (essays / "about.jsonl").write_text('{"about": "not an essay"}\n')
    assert read.texts(str(essays)) == ["first", "second"]
    (tmp_path / "e.zip").write_bytes(zip_bytes({"b.txt": b"second", "a.txt": b"first"}))
    assert read.texts(str(tmp_path / "e.zip")) == ["first", "second"]
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert read.texts(str(tmp_path / "rows.jsonl")) == ["one\u2028line", "two"]
    assert read.texts(str(essays / "b.txt")) == ["second"]
    with pytest.raises(InputError, match=r"row 1: no 'text'; found the fields about"):
        read.texts(str(essays / "about.jsonl"))
    with pytest.raises(InputError, match="no text in it"):
        read.texts(str(essays / "c.txt"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"x", r"expected \.jsonl"),
        ("a.zip", zip_bytes({"a.csv": b"x"}), r"no data file in it; expected \.jsonl"),
        ("a.zip", zip_bytes({"FLenQA": b"prose"}), r"no data file in it; expected \.jsonl"),
        ("a.zip", zip_bytes({"FLenQA": LINES, "other": LINES}), r"no data file in it; expected \.jsonl"),
        ("a.zip", b"PK torn", "not a whole zip file"),
        ("a.zip", zip_bytes({"x/b.jsonl": b'{"n": 1}\n{'}), r"a\.zip: x/b\.jsonl:2: not JSON"),
        ("a.json", b"[1]", "row 1: expected an object"),
        ("a.jsonl", b'"x"', ":1: expected an object"),
        ("a.jsonl", b"\xff", ":1: not UTF-8"),
        ("a.jsonl.zst", pa.Codec("zstd").compress(LINES, asbytes=True)[:20], "not a whole zstd file"),
        ("a.zip", zip_bytes({"a.jsonl": LINES}).replace(b"two", b"owt"), "not a whole zip file: Bad CRC"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        rows(tmp_path / name)
    assert not isinstance(caught.value, SourceUnreachableError)


def test_an_encrypted_archive_is_an_input_error(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"a.jsonl": LINES}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        rows(tmp_path / "a.zip")


def test_digest_is_content_and_not_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").write_bytes(LINES)
    assert read.digest(str(tmp_path / "a.jsonl")) == read.digest(str(tmp_path / "b.jsonl"))
    whole = read.digest(str(tmp_path))
    (tmp_path / "b.jsonl").rename(tmp_path / "0.jsonl")
    renamed = read.digest(str(tmp_path))
    assert renamed != whole, "the names decide the order"
    (tmp_path / ".hidden").write_text("x")
    assert read.digest(str(tmp_path)) == renamed
    with pytest.raises(InputError, match="cannot be read"):
        read.digest(str(tmp_path / "none"))


def test_a_url_is_fetched_once_and_tells_gone_from_away(serve: Callable) -> None:
    address, asked = serve({"/a.jsonl": (200, LINES), "/busy.jsonl": (503, b""), "/limit.jsonl": (429, b"")})
    url = f"{address}/a.jsonl?token=x.y"
    assert rows(url) == ROWS and read.digest(url) == hashlib.sha256(LINES).hexdigest()
    assert asked == ["GET /a.jsonl?token=x.y"]
    with pytest.raises(InputError, match="404") as gone:
        rows(f"{address}/none.jsonl")
    assert not isinstance(gone.value, SourceUnreachableError)
    for name in ("busy", "limit"):
        with pytest.raises(SourceUnreachableError, match=name):
            rows(f"{address}/{name}.jsonl")
    with pytest.raises(SourceUnreachableError, match="cannot be read"):
        read.digest("http://127.0.0.1:9/a.jsonl")


HUB = """
import json, sys
from kvray.errors import SourceUnreachableError
from kvray.tasks.sources import read as sources
told = {}
for source in sys.argv[1:]:
    try:
        told[source] = [sources.digest(source), [(where, row["n"]) for where, row in sources.rows(source)]]
    except Exception as error:
        told[source] = [type(error).__name__, str(error)]
print(json.dumps(told))
"""


def read_from_hub(endpoint: str, offline: str, home: Path, *names: str) -> dict[str, list]:
    done = subprocess.run(
        [sys.executable, "-c", HUB, *names],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dataset_of_the_hub_is_its_commit_and_its_data_files(serve: Callable, tmp_path: Path) -> None:
    names = ["README.md", "dataset_infos.json", "train/b.jsonl", "train/a.zip", "test/c.parquet"]
    info = {"_id": "1", "id": "org/name", "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [],
            "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
    files = {
        "train/b.jsonl": b'{"n": 3}',
        "train/a.zip": zip_bytes({"x.jsonl": b'{"n": 4}'}),
        "test/c.parquet": parquet_bytes(),
    }
    answers = {f"/datasets/org/name/resolve/{COMMIT}/{name}": (200, data) for name, data in files.items()}
    answers["/api/datasets/org/name"] = (200, json.dumps(info).encode())
    answers["/api/datasets/org/name/revision/v1/x"] = answers["/api/datasets/org/name"]
    answers["/api/datasets/org/name/revision/v1%2Fx"] = answers["/api/datasets/org/name"]
    answers["/api/datasets/org/busy"] = (503, b"{}")
    address, _ = serve(answers)
    whole, split, file, none = (
        "hf://datasets/org/name", "hf://datasets/org/name@v1%2Fx/train", f"hf://datasets/org/name@{COMMIT}/train/b.jsonl",
        "hf://datasets/org/none",
    )  # fmt: skip
    wrong, busy, empty = "hf://datasets/org", "hf://datasets/org/busy", "hf://datasets/org/name/nothing"
    told = read_from_hub(address, "0", tmp_path, whole, split, file, none, wrong, busy, empty)
    assert told[whole][0] == f"org/name@{COMMIT}"
    assert [n for _, n in told[whole][1]] == [1, 2, 4, 3], "sorted by name: test/c.parquet, train/a.zip, train/b.jsonl"
    assert told[split] == [
        f"org/name@{COMMIT}/train",
        [[f"{split}: train/a.zip: x.jsonl: row 1", 4], [f"{split}: train/b.jsonl: row 1", 3]],
    ]
    assert told[file] == [f"org/name@{COMMIT}/train/b.jsonl", [[f"{file}: row 1", 3]]]
    assert told[none][0] == "InputError" and "org/none" in told[none][1]
    assert told[wrong][0] == "InputError" and "expected hf://datasets/ORG/NAME" in told[wrong][1]
    assert told[busy][0] == "SourceUnreachableError"
    assert told[empty][0] == "InputError" and "train/b.jsonl" in told[empty][1]
    # A commit's files stay readable without the hub once they are in its cache.
    away = read_from_hub("http://127.0.0.1:9", "1", tmp_path, file, whole)
    assert away[file] == told[file]
    assert away[whole][0] == "SourceUnreachableError"
    assert "hf download --repo-type dataset org/name" in away[whole][1] and "HF_HOME" in away[whole][1]
    # By the name of a branch too; but not a folder, of which the cache may have a part.
    refs = tmp_path / "hub" / "datasets--org--name" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(COMMIT)
    named = "hf://datasets/org/name/train/b.jsonl"
    away = read_from_hub("http://127.0.0.1:9", "0", tmp_path, named, whole)
    assert away[named] == [f"org/name@{COMMIT}/train/b.jsonl", [[f"{named}: row 1", 3]]]
    assert away[whole][0] == "SourceUnreachableError"
