"""The pull loop with an engine that has no model: whatever order work comes in, and wherever an engine dies."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import evaluate_store as made
import pyarrow as pa
import pytest
from fake_engine import BASE, FakeEngine
from local_driver import Driver, Watched, evaluate

from kvray.errors import StoreError
from kvray.evaluate import chunks, job
from kvray.evaluate.committer import Committer
from kvray.models.reference import resolve
from kvray.planning.artefacts import Artefact
from kvray.planning.work import Nothing, Unit
from kvray.store.manifest import FileEntry
from kvray.store.store import Store

TINY = resolve("kvray-tiny")
CHUNK = 8


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", CHUNK)
    monkeypatch.setattr(job, "engine_class", lambda base, runtime: FakeEngine)
    FakeEngine.reset()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def finetune(store: Store, name: str) -> str:
    """Commit a finetune without real weights: an adapter, or weights of its own if it is called ``whole``."""
    home = Path(store.uri).parent / name
    home.mkdir()
    (home / ("config.json" if "whole" in name else "adapter_config.json")).write_text("{}")
    return made.finetune(store, name, home)


def cells_of(store: Store, *names: str | None, rows: int = 20) -> list[Artefact]:
    data = made.dataset(store, made.example_table(rows))
    return [made.predictions(store, data, finetune(store, name) if name else None) for name in names]


def check(store: Store, cells: Sequence[Artefact], rows: int = 20) -> None:
    """Every cell is whole, and each row of it was answered once, by its own model."""
    said = set()
    for cell in cells:
        assert store.problems(cell.id, verify=True) == []
        table = store.read_table(cell.id)
        assert table["example_id"].to_pylist() == [f"e{i:05d}" for i in range(rows)]
        models = {answer.split()[0] for answer in table["answer"].to_pylist()}
        expected = cell.params.finetune_id
        assert models == {expected.rpartition("/")[2] if expected else BASE}
        said |= models
    assert len(said) == len({cell.params.finetune_id for cell in cells})


class Odd(Watched):
    """Gives units in random order, whatever is loaded, and has none at random."""

    random: random.Random

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        if self.random.random() < 0.3:
            return Nothing.LATER
        models = [None, *{unit.model for cell in self._queue._cells.values() for unit in cell.open.values()}]
        return super().take(self.random.sample(models, len(models)), wait)


@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_there_once_and_by_its_own_model_in_whatever_order_units_come(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    cells = cells_of(store, None, "one", "whole-two", "three", "whole-four")
    monkeypatch.setattr("local_driver.Watched", Odd)
    monkeypatch.setattr(Odd, "random", random.Random(seed), raising=False)
    assert evaluate(store, TINY, *cells, per_unit=1 + seed % 2) == [None] * 5
    check(store, cells)
    assert len(FakeEngine.starts) == 1 and FakeEngine.asked == 100  # one engine, no row twice
    engines = [store.manifest(cell.id).measurements["engines"] for cell in cells]  # type: ignore[union-attr]
    assert engines == [[{"id": 1}]] * 5


def test_the_window_drains_only_where_a_model_is_loaded(store: Store) -> None:
    cells = cells_of(store, None, "one", "whole-two", rows=40)
    assert evaluate(store, TINY, *cells) == [None] * 3
    assert len(FakeEngine.drained) == 3  # 15 units


@pytest.mark.parametrize("per_unit", [1, 2])
def test_wherever_an_engine_dies_only_what_it_had_not_stored_is_asked_again(store: Store, per_unit: int) -> None:
    # Four models of three chunks: the engine dies at every answer in turn, in one run.
    cells = cells_of(store, None, "one", "whole-two", "three")
    driver = Driver(store, TINY, retries=1000)
    driver.add(cells, per_unit)
    driver.queue.close()
    deaths = 0
    while not driver.queue.over:
        FakeEngine.asked, FakeEngine.lives = 0, 3 + deaths
        try:
            driver.seat()
        except RuntimeError as error:
            assert "died" in str(error)
            deaths += 1
    assert deaths > 5
    check(store, cells)


def test_what_is_stored_is_never_asked_again(store: Store) -> None:
    cells = cells_of(store, None, "one")
    for lives in range(40):
        FakeEngine.asked, FakeEngine.lives = 0, lives
        before = {
            file: file.stat().st_mtime_ns for cell in cells for file in Path(store.path(cell.id)).glob("data/chunk*")
        }
        try:
            errors = evaluate(store, TINY, *[cell for cell in cells if store.manifest(cell.id) is None])
        except RuntimeError:
            errors = ["died"]
        assert all(file.stat().st_mtime_ns == at for file, at in before.items())
        if not any(errors):
            break
    check(store, cells)


class Few(Watched):
    """Ends after two units."""

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        return Nothing.END if len(self.taken) == 2 else super().take(holding, wait)


def test_a_cell_over_several_engines_is_committed_by_the_last_which_reads_the_chunks_of_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = cells_of(store, None, rows=5 * CHUNK)
    monkeypatch.setattr("local_driver.Watched", Few)
    read: list[int] = []
    plain = chunks.read

    def noted(store: Store, artefact_id: str, index: int, questions: Any) -> Any:
        read.append(index)
        return plain(store, artefact_id, index, questions)

    monkeypatch.setattr(chunks, "read", noted)
    assert evaluate(store, TINY, cell) == [None]
    check(store, [cell], 5 * CHUNK)
    assert len(FakeEngine.starts) == 3 and read == [0, 1, 2, 3]
    manifest = store.manifest(cell.id)
    assert manifest is not None and [each["id"] for each in manifest.measurements["engines"]] == [1, 2, 3]


def test_chunks_of_earlier_runs_are_kept_and_one_that_is_torn_is_asked_again(store: Store) -> None:
    (cell,) = cells_of(store, None)
    FakeEngine.lives = 19
    with pytest.raises(RuntimeError, match="died"):
        evaluate(store, TINY, cell)
    FakeEngine.reset()
    whole, torn = (Path(store.path(cell.id, chunks.chunk_name(index))) for index in (0, 1))
    written = whole.stat().st_mtime_ns
    torn.write_bytes(torn.read_bytes()[:500])
    assert evaluate(store, TINY, cell) == [None]
    assert whole.stat().st_mtime_ns == written and FakeEngine.asked == 4 + CHUNK
    check(store, [cell])


def test_a_whole_cell_without_a_manifest_is_committed_without_an_engine(store: Store) -> None:
    class Uncommitted(Store):
        def commit(self, **given: Any) -> Any:
            raise RuntimeError("killed")

    (cell,) = cells_of(store, None)
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(Uncommitted(store.uri), TINY, cell)
    FakeEngine.reset()
    assert store.manifest(cell.id) is None
    assert evaluate(store, TINY, cell) == [None] and not FakeEngine.starts
    check(store, [cell])


def test_models_that_cannot_be_used_fail_their_cells_alone(store: Store) -> None:
    names = ["zero", "one", "cut", "zero-whole", "cut-whole", "whole", "bad"]
    cells = dict(zip([BASE, *names], cells_of(store, None, *names), strict=True))
    file = Path(store.path(cells["bad"].params.finetune_id, "adapter_config.json"))
    file.write_text("[]")
    errors = dict(zip(cells, evaluate(store, TINY, *cells.values()), strict=True))
    assert {name for name, error in errors.items() if error is None} == {BASE, "one", "whole"}
    check(store, [cells[name] for name in (BASE, "one", "whole")])
    for name in ("zero", "zero-whole"):
        assert "changes nothing" in str(errors[name])
    assert "cut off" in str(errors["cut"]) and "cut off" in str(errors["cut-whole"]) and "sha256" in str(errors["bad"])


def test_a_base_model_that_does_not_come_back_is_the_engines_death(store: Store) -> None:
    cells = cells_of(store, "whole", None)
    FakeEngine.forgets = True
    with pytest.raises(RuntimeError, match="did not come back"):
        evaluate(store, TINY, *cells)
    assert store.manifest(cells[1].id) is None


def test_a_unit_that_needs_a_longer_engine_is_given_back_and_done_by_one(store: Store) -> None:
    short, long = made.example_table(20), made.example_table(12, long_rows=(11,))
    first = made.predictions(store, made.dataset(store, short), None)
    later = made.predictions(store, made.dataset(store, long, "long"), None)
    driver = Driver(store, TINY)
    driver.add([first])
    driver.queue.expect("evaluate", later.id, 1.0, 0.0, True)
    driver.cells[later.id] = later
    taken = Watched.take

    class Late(Watched):
        """The second dataset is committed when the first cell is done."""

        def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
            if wait and driver.queue.view()[0].waiting and store.manifest(first.id):
                store.commit = type(store).commit.__get__(store)  # type: ignore[method-assign]
                driver.add([later])
                driver.queue.close()
            return taken(self, holding, wait)

    # As far as the first engine knows, the second dataset is not there yet.
    hidden = store.manifest(later.params.dataset_id)
    assert hidden is not None
    manifest = Path(store.path(later.params.dataset_id, "manifest.json"))
    aside = manifest.rename(manifest.with_name("aside"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("local_driver.Watched", Late)
        original = chunks.commit

        def commit(*given: Any) -> None:
            original(*given)
            if aside.exists():
                aside.rename(manifest)

        patch.setattr(chunks, "commit", commit)
        while not driver.queue.over:
            driver.seat()
    assert driver.errors == {first.id: None, later.id: None}
    assert len(FakeEngine.starts) == 2 and FakeEngine.starts[0] < 256 < FakeEngine.starts[1]
    check(store, [first])
    assert store.read_table(later.id).num_rows == 12


def test_an_engine_is_as_long_as_the_longest_planned_cell_but_no_longer_than_the_model(store: Store) -> None:
    data = [made.dataset(store, made.example_table(12, long_rows=rows), f"d{len(rows)}") for rows in ((), (5,))]
    cells = [made.predictions(store, each, None) for each in data]
    driver = Driver(store, TINY)
    driver.add(cells)
    driver.queue.close()
    driver.seat()
    assert not any(driver.errors.values()) and FakeEngine.starts[0] > 256
    FakeEngine.reset()
    FakeEngine.limit = 200
    other = made.predictions(store, made.dataset(store, made.example_table(14, long_rows=(5,)), "other"), None)
    assert evaluate(store, TINY, other) == [None] and FakeEngine.starts == [200]
    assert store.read_table(other.id)["finish_reason"].to_pylist().count("too_long") == 1


class Unwritable(Store):
    """It refuses the chunks of one cell after the first."""

    left = 1

    def create(self, artefact_id: str, name: str, table: pa.Table) -> FileEntry | None:
        if "one" in artefact_id:
            Unwritable.left -= 1
            if Unwritable.left < 0:
                raise StoreError("access denied")
        return super().create(artefact_id, name, table)


def test_a_cell_that_the_store_refuses_fails_alone_and_what_it_took_is_kept(store: Store) -> None:
    cells = cells_of(store, None, "one")
    assert evaluate(Unwritable(store.uri), TINY, *cells) == [None, "access denied"]
    assert len(list(Path(store.uri, cells[1].id).glob("data/chunk-*"))) == 1
    FakeEngine.reset()
    assert evaluate(store, TINY, *cells) == [None] * 2 and FakeEngine.asked == 20 - CHUNK
    check(store, cells)


class Second(Store):
    """A store into which another run writes the same chunks a moment earlier, with other answers."""

    unusable = False

    def create(self, artefact_id: str, name: str, table: pa.Table) -> FileEntry | None:
        answers = pa.array([f"{BASE} of another run"] * len(table))
        other = table.set_column(table.schema.get_field_index("answer"), table.schema.field("answer"), answers)
        assert super().create(artefact_id, name, other.slice(1) if self.unusable else other) is not None
        return super().create(artefact_id, name, table)


@pytest.mark.parametrize("unusable", [False, True])
def test_chunks_that_another_run_has_stored_are_taken_and_never_mixed(
    store: Store, unusable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Second, "unusable", unusable)
    cells = cells_of(store, None)
    assert evaluate(Second(store.uri), TINY, *cells) == [None]
    check(store, cells)
    answers = set(store.read_table(cells[0].id)["answer"].to_pylist())
    assert (answers == {f"{BASE} of another run"}) != unusable


def test_rows_that_cannot_be_scored_fail_their_cell_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvray.errors import CellError
    from kvray.evaluate.questions import DatasetQuestions

    cells, plain = cells_of(store, None, "one"), DatasetQuestions.columns

    def columns(self: Any, rows: range, replies: Any) -> Any:
        if rows.start == CHUNK and replies[0][0].answer.startswith("one"):
            raise CellError("no score")
        return plain(self, rows, replies)

    monkeypatch.setattr(DatasetQuestions, "columns", columns)
    assert evaluate(store, TINY, *cells) == [None, "no score"]
    check(store, cells[:1])


def test_tables_that_are_not_kept_are_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvray.evaluate.committer.TABLES", 1)
    (cell,) = cells_of(store, None)
    assert evaluate(store, TINY, cell) == [None]
    check(store, [cell])


def test_the_time_of_a_start_is_told_without_the_wait_for_work(store: Store) -> None:
    (cell,) = cells_of(store, None)
    driver = Driver(store, TINY)
    driver.queue.expect("evaluate", cell.id, 1.0, 0.0, True)
    waits = iter(range(30))

    class Waiting(Watched):
        def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
            if next(waits, None) == 20:
                driver.add([cell])
                driver.queue.close()
            return super().take(holding, wait)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("local_driver.Watched", Waiting)
        driver.seat()
    (seconds,) = driver.sources[0].starts
    assert 0 <= seconds < 10 and driver.errors == {cell.id: None}


def test_nothing_is_left_running_after_an_engine_died(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Committer] = []
    plain = Committer.close
    monkeypatch.setattr(Committer, "close", lambda self: (closed.append(self), plain(self)))
    FakeEngine.lives = 3
    with pytest.raises(RuntimeError, match="died"):
        evaluate(store, TINY, *cells_of(store, None))
    assert len(closed) == 1
