"""Which modules get an adapter, by the architecture, and which architectures vLLM serves none of."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvray.models.lora import ATTENTION, UNSERVED, target_names

LLAMA = {f"self_attn.{name}" for name in ATTENTION} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
PHI3 = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}
PHI2 = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "dense")} | {"mlp.fc1", "mlp.fc2"}
NEOX = {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}
GPT2 = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
MAMBA = {"mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"}


@pytest.mark.parametrize(
    ("modules", "attention"),
    [
        (LLAMA, ATTENTION),
        (LLAMA | {"linear_attn.in_proj_qkv"}, ATTENTION),
        (PHI3, ("o_proj", "qkv_proj")),
        (PHI2, ("q_proj", "k_proj", "v_proj", "dense")),
        (NEOX, ("dense", "query_key_value")),
        (GPT2, ("c_attn",)),
        (MAMBA, ()),
        ((), ()),
    ],
)
def test_attention_is_what_the_architecture_has_there(modules: set[str], attention: tuple[str, ...]) -> None:
    assert target_names("attention", modules) == attention


def test_all_linear_starts_as_attention_does_and_names_are_kept() -> None:
    assert target_names("all-linear", LLAMA) == (*ATTENTION, "down_proj", "gate_proj", "up_proj")
    assert target_names("all-linear", PHI3) == ("o_proj", "down_proj", "gate_up_proj", "qkv_proj")
    assert target_names(("v_proj", "q_proj"), LLAMA) == ("v_proj", "q_proj")


def test_the_architectures_without_adapters_are_vllms() -> None:
    # Read, not imported: asking every class would take a minute.
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent / "model_executor" / "models"
    bases: dict[str, list[str]] = {}
    for file in [*home.rglob("*.py"), *(home.parents[1] / "models").rglob("*.py")]:
        for name, listed in re.findall(r"^class (\w+)\(([^)]*)\)", file.read_text(encoding="utf-8"), re.MULTILINE):
            bases.setdefault(name, []).extend(set(re.findall(r"\w+", listed)) - {name})

    def served(name: str) -> bool:
        return name == "SupportsLoRA" or any(map(served, bases.get(name, ())))

    registered = dict(_registered(home / "registry.py"))
    assert len(registered) > 50 and served("LlamaForCausalLM") and served("Phi3ForCausalLM")
    assert {name for name, own in registered.items() if not served(own)} == UNSERVED


def _registered(registry: Path) -> Iterator[tuple[str, str]]:
    """Yield architectures of text models with vLLM's own class for each."""
    for node in ast.parse(registry.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_TEXT_GENERATION_MODELS":
            yield from ((name, own) for name, (_, own) in ast.literal_eval(node.value).items())
