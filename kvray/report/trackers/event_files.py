"""TensorBoard: event files, written whole by kvray's own writer, so that they may lie in a bucket."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from kvray.report.trackers.content import Curve, Scores
from kvray.store import output
from kvray.store.places.files import Folder
from kvray.store.store import Store

VARIABLE = "TENSORBOARD_LOGGING_DIR"
"""Names another directory, or URI, than ``tensorboard/`` in the store; transformers knows the same variable."""
_OURS = re.compile(r"events\.out\.tfevents\.\d+\.kvray-[0-9a-f]{12}")


class EventFiles:
    """A folder per finetune, ``<sweep>/<finetune>``, and ``<sweep>/report`` and ``<sweep>/scores/<model>``.

    What has not changed is not written again, and a newer event file takes the place of an older one.
    """

    def __init__(self, store: Store, sweep: str) -> None:
        """Take the folder; InputError if ``$TENSORBOARD_LOGGING_DIR`` is no place to write to."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._writer = Event, Summary, RecordWriter
        chosen = os.environ.get(VARIABLE)
        folder = output.folder(chosen) if chosen else store.folder("tensorboard")
        self._place = folder.place
        self._folder: Folder = replace(folder, root=f"{folder.root}/{sweep}")

    @property
    def place(self) -> str:
        return f"tensorboard --logdir {self._place}"

    @cached_property
    def _there(self) -> set[str]:
        """Event files of kvray's that the sweep has; other programs' are left alone."""
        return {name for name in self._folder.names() if _OURS.fullmatch(name.rpartition("/")[2])}

    def finetune(self, curve: Curve) -> None:
        """Write a finetune's curves and hyperparameters."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        plain = {name: value for name, value in curve.config.items() if isinstance(value, bool | int | float | str)}
        began = curve.times[0] if curve.times else 0.0
        events = [self._event(wall_time=began, summary=hparams_pb(plain, start_time_secs=began))]
        for name, values in curve.series.items():
            for step, at, value in zip(curve.steps, curve.times, values, strict=True):
                if value is not None:
                    events.append(self._event(wall_time=at, step=step, summary=scalar_pb(name, value)))
        self._write(_safe(curve.name), events, [dict(curve.config), curve.times, curve.series], began)

    def scores(self, scores: Scores) -> None:
        """Write scores as scalars of step 0 and as a table, the report's figures, and the sweep."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        by_model: dict[str, list[Any]] = {}
        for name, value in scores.values().items():
            bound, evaluation, model = name.split("/", 2)
            event = self._event(summary=scalar_pb(f"{bound}/{evaluation}", value))
            by_model.setdefault(model, []).append(event)
        for model, events in by_model.items():
            values = {name: value for name, value in scores.values().items() if name.endswith(f"/{model}")}
            self._write(f"scores/{_safe(model)}", events, values)
        models = {f"scores/{_safe(model)}" for model in by_model}
        self._delete(
            {name for name in self._there if name.startswith("scores/") and name.rpartition("/")[0] not in models}
        )
        header, rows = scores.table()
        cells = [
            ["" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
            for row in rows
        ]
        lines = [header, ["---"] * len(header), *cells]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        artefacts = json.dumps(scores.config, indent=1)
        texts = {"scores": table, "sweep": f"```yaml\n{scores.yaml}\n```", "config": f"```json\n{artefacts}\n```"}
        events = [self._event(summary=text_pb(name, text)) for name, text in texts.items()]
        events += [self._event(summary=self._image(name, png)) for name, png in scores.figures.items()]
        self._write("report", events, scores.digest)

    def _image(self, name: str, png: bytes) -> Any:
        from tensorboard.plugins.image.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        wide, high = (str(int.from_bytes(png[at : at + 4], "big")).encode() for at in (16, 20))  # of the PNG's header
        about = create_summary_metadata(display_name=None, description="")
        tensor = make_tensor_proto([wide, high, png])
        return self._summary(value=[self._summary.Value(tag=f"figures/{name}", metadata=about, tensor=tensor)])

    def _write(self, run: str, events: list[Any], made_of: Any, began: float = 0.0) -> None:
        """Write the one event file of a run, unless it is there; remove an older one of kvray's.

        ``made_of`` are the plain values that the events say: their own bytes may differ from process to process.
        """
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
        ours = {name for name in self._there if name.rpartition("/")[0] == run}
        same = {name for name in ours if name.endswith(digest)}
        if not same:
            stream, at = io.BytesIO(), time.time()
            records = self._writer(stream)
            for event in [self._event(wall_time=began or at, file_version="brain.Event:2"), *_timed(events, at)]:
                records.write(event.SerializeToString())
            name = f"{run}/events.out.tfevents.{at:.0f}.kvray-{digest}"
            self._folder.put(name, stream.getvalue())
            self._there.add(name)
        self._delete(ours - same)

    def _delete(self, names: Collection[str]) -> None:
        for name in names:
            self._folder.delete(name)
            self._there.discard(name)


def _timed(events: list[Any], at: float) -> Iterator[Any]:
    for event in events:
        if not event.wall_time:
            event.wall_time = at
        yield event


def _safe(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.") or "unnamed"
