"""Whether this environment has the packages that a run takes, told before anything is written."""

from collections.abc import Sequence

from kvray.driver.connection import asked_for
from kvray.errors import installed, need
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, FinetuneJob, Plan, PredictionsJob, asks_api
from kvray.store.store import Store
from kvray.sweep.model import Runtime


def need_packages(planned: Plan, base: BaseModelRef, store: Store, verify: bool) -> None:
    """Raise an InputError if packages beside the light install are missing here that the rest of a plan takes.

    The workers of another Ray have packages of their own, so for one that is joined Ray itself is enough here.
    """
    if all(map(installed, _packages(planned.artefacts, base, planned.sweep.runtime))):
        return
    listing = store.listing([artefact.id for artefact in planned.artefacts], verify)
    todo = [artefact for artefact in planned.artefacts if listing[artefact.id].state != "committed"]
    if todo:
        need("kvray run", *_packages(todo, base, planned.sweep.runtime))


def _packages(todo: Sequence[Artefact], base: BaseModelRef, runtime: Runtime) -> list[str]:
    packages, local = ["ray"], asked_for(runtime) is None
    for artefact in todo:
        if asks_api(artefact, base):
            packages.append("openai")
        elif local and isinstance(artefact.params, FinetuneJob):
            packages += ["torch", "transformers", "peft", "accelerate"]
        elif local and isinstance(artefact.params, PredictionsJob):
            packages += ["transformers", *(["vllm"] if runtime.engine == Runtime().engine else [])]
    return list(dict.fromkeys(packages))
