"""Weights & Biases: a run per sweep, and one per finetune in the same group, in the project that wandb is set to."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvray.errors import InputError
from kvray.report.trackers.content import Curve, Scores
from kvray.store.store import Store

PROJECT = "kvray"
"""Unless ``$WANDB_PROJECT`` names another one."""
_SENT = "kvray.json"
"""A file of a run that says what was sent, written last."""


class WandbRuns:
    """Runs whose ids follow from store, sweep and finetune, so that what is sent again goes to the same run.

    Neither this machine's code, git state, metrics or console are sent.
    """

    def __init__(self, store: Store, sweep: str) -> None:
        """Take wandb's own settings (``WANDB_MODE``, ``WANDB_PROJECT``); InputError if a key is needed and absent."""
        import wandb

        # It would record the requests to APIs, prompts included.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        self._wandb = wandb
        self._mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        self._sweep = sweep
        # Without this wandb would ask for a key in the middle of a run.
        if self._mode == "online" and not wandb.login(prompt=False, verify=False):
            raise InputError(
                "runtime.trackers: wandb has no API key; type wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline "
                "to keep everything on this machine"
            )

    @property
    def place(self) -> str:
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        if self._mode == "offline":
            return f"wandb sync {self._folder()}/offline-run-* sends project {project}"
        return f"project {project}, group {self._sweep}"

    def finetune(self, curve: Curve) -> None:
        """Send a finetune's curves and hyperparameters, unless they are there whole."""
        if self._sent(curve.key) is not None:
            return
        run = self._init(curve.key, curve.name, "finetune", curve.config)
        try:
            if not run.resumed:
                for at, step in enumerate(curve.steps):
                    values = {name: series[at] for name, series in curve.series.items()}
                    run.log({name: value for name, value in values.items() if value is not None}, step=step)
            self._note(run, "whole")
        finally:
            run.finish()

    def scores(self, scores: Scores) -> None:
        """Send scores, figures and the sweep to the sweep's run; what is there already is replaced."""
        if self._sent(scores.key) == scores.digest:
            return
        run = self._init(scores.key, self._sweep, "sweep", scores.config)
        try:
            run.summary.update(scores.values())
            header, rows = scores.table()
            # Of one type each: wandb refuses a column whose numbers are now and then none.
            cells = [
                ["" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row]
                for row in rows
            ]
            shown: dict[str, Any] = {"scores": self._wandb.Table(columns=[*header], data=cells)}
            with tempfile.TemporaryDirectory(prefix="kvray-wandb-") as folder:
                for name, png in scores.figures.items():
                    file = Path(folder, f"{name}.png")
                    file.write_bytes(png)
                    shown[f"figures/{name}"] = self._wandb.Image(str(file))
                run.log(shown)
            Path(run.dir, "sweep.yaml").write_text(scores.yaml)
            self._note(run, scores.digest)
        finally:
            run.finish()

    def _init(self, key: str, name: str, kind: str, config: Mapping[str, Any]) -> Any:
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=key,
            resume="allow",
            name=name,
            group=self._sweep,
            job_type=kind,
            config=dict(config),
            reinit="create_new",  # a run that the user's own program has open goes on
            settings=settings,
        )

    def _folder(self) -> Path:
        return Path(os.environ.get("WANDB_DIR") or ".", "wandb").absolute()

    def _sent(self, key: str) -> str | None:
        """Return what the last offline run of a key sent; None if there is none, or where wandb's server knows."""
        if self._mode != "offline":
            return None
        notes = sorted(self._folder().glob(f"offline-run-*-{key}/files/{_SENT}"))
        return str(json.loads(notes[-1].read_text())["sent"]) if notes else None

    def _note(self, run: Any, sent: str) -> None:
        Path(run.dir, _SENT).write_text(json.dumps({"sent": sent}))
