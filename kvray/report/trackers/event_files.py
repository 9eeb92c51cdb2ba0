"""TensorBoard: event files, written whole by kvray's own writer, so that they may lie in a bucket."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
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
        self._folder: Folder = output.folder(chosen) if chosen else store.folder("tensorboard")
        self._sweep = sweep

    @property
    def place(self) -> str:
        return f"tensorboard --logdir {self._folder.place}"

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
        self._write(_safe(curve.name), events, began)

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
            self._write(f"scores/{_safe(model)}", events, 0.0)
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
        self._write("report", events, 0.0)

    def _image(self, name: str, png: bytes) -> Any:
        from tensorboard.plugins.image.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        wide, high = (str(int.from_bytes(png[at : at + 4], "big")).encode() for at in (16, 20))  # of the PNG's header
        about = create_summary_metadata(display_name=None, description="")
        tensor = make_tensor_proto([wide, high, png])
        return self._summary(value=[self._summary.Value(tag=f"figures/{name}", metadata=about, tensor=tensor)])

    def _write(self, run: str, events: list[Any], began: float) -> None:
        """Write the one event file of a run, unless it is there; remove an older one of kvray's."""
        folder = f"{self._sweep}/{run}"
        digest = hashlib.sha256(b"".join(event.SerializeToString(deterministic=True) for event in events)).hexdigest()
        there = {name.rpartition("/")[2] for name in self._folder.names() if name.rpartition("/")[0] == folder}
        ours = {name for name in there if _OURS.fullmatch(name)}
        if same := {name for name in ours if name.endswith(digest[:12])}:
            old = ours - same
        else:
            # TensorBoard reads the files of a run in the order of their names.
            stream, at = io.BytesIO(), time.time()
            records = self._writer(stream)
            for event in [self._event(wall_time=began or at, file_version="brain.Event:2"), *_timed(events, at)]:
                records.write(event.SerializeToString())
            self._folder.put(f"{folder}/events.out.tfevents.{at:.0f}.kvray-{digest[:12]}", stream.getvalue())
            old = ours
        for name in old:
            self._folder.delete(f"{folder}/{name}")


def _timed(events: list[Any], at: float) -> Iterator[Any]:
    for event in events:
        if not event.wall_time:
            event.wall_time = at
        yield event


def _safe(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.") or "unnamed"
