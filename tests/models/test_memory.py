"""What a finetune is said to take of memory is what torch keeps of it, tensor by tensor."""

from __future__ import annotations

import pytest

from kvray.models.memory import Batch, Decoder, Training, decoder_of

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SMALL = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 896, "vocab_size": 512, "head_dim": 32, "dtype": "bfloat16",
}  # fmt: skip
MISTRAL_7B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip
ROWS, LENGTH, KEPT = 2, 384, 5


def sizes(config: dict[str, object]) -> Decoder:
    found = decoder_of(config)
    assert found is not None
    return found


def kept_bytes(kind: str, method: str, targets: tuple[str, ...], mixed: bool, masked: bool, checkpointing: bool) -> int:
    """Return the bytes of tensors that autograd keeps between forward and backward, weights and their copies apart."""
    import torch
    import transformers

    from kvray.finetune.model import prepare
    from kvray.sweep.model import Finetune

    config = getattr(transformers, f"{kind}Config")(**SMALL)
    config.use_cache = False
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model = model.to(torch.bfloat16 if mixed and method != "full" else torch.float32)
    model = prepare(model, Finetune(method=method, lora_rank=8, lora_targets=targets or "attention")).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, tuple[int, object]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Autocast's copies of weights have at most two dimensions, none of them a number of tokens.
        copy = tensor.dim() == 2 and ROWS * LENGTH not in tensor.shape
        if storage.data_ptr() not in weights and not copy:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(0, 512, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, : 9 if masked else 0] = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(input_ids=ids, attention_mask=mask, logits_to_keep=KEPT)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("kind", "method", "targets"),
    [
        ("Llama", "lora", ATTENTION),
        ("Mistral", "lora", ATTENTION + MLP),
        ("Mistral", "attention", ()),
        ("Llama", "full", ()),
    ],
)
def test_activations_are_what_torch_keeps(kind, method, targets, mixed, masked):
    training = Training(sizes(SMALL), method, targets, 8, mixed)
    batch = Batch(ROWS * LENGTH, ROWS, LENGTH, kept=0, masked=masked)
    kept = kept_bytes(kind, method, targets, mixed, masked, False)
    assert kept == pytest.approx(training.kept(batch), rel=0.01)
    assert training.kept(batch) < training.activations(batch) < 1.4 * kept


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_with_checkpointing_only_the_inputs_of_layers_are_kept(method, mixed):
    training = Training(sizes(SMALL), method, ATTENTION, 8, mixed)
    batch = Batch(ROWS * LENGTH, ROWS, LENGTH, kept=0)
    kept = kept_bytes("Llama", method, ATTENTION, mixed, False, True)
    assert kept == pytest.approx(training.kept(batch, checkpointing=True), rel=0.1)
    assert training.activations(batch, checkpointing=True) < 0.7 * training.activations(batch)


def test_weights_of_mistral_7b_are_counted_and_attention_wants_33_gb():
    mistral = sizes(MISTRAL_7B)
    assert mistral.weights == pytest.approx(7.242e9, rel=1e-3)
    attention = Training(mistral, "attention")
    assert attention.trained == pytest.approx(1.342e9, rel=1e-3)
    copies = 2 * attention.trained
    assert (attention.fixed - copies) / 1e9 == pytest.approx(33.3, abs=0.1)
    assert Training(mistral, "full").fixed / 1e9 == pytest.approx(7.242 * 18, rel=1e-3)
    lora = Training(mistral, "lora", ATTENTION, 16)
    assert lora.trained == 13_631_488
    assert lora.fixed / 1e9 == pytest.approx(14.48 + 0.245, abs=0.01)


def test_an_adapter_trains_as_many_weights_as_is_said():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kvray.finetune.model import prepare
    from kvray.sweep.model import Finetune

    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**SMALL))
    everything = sum(p.numel() for p in base.parameters())
    model = prepare(base, Finetune(lora_rank=8, lora_targets=ATTENTION + MLP))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    training = Training(sizes(SMALL), "lora", ATTENTION + MLP, 8)
    assert training.trained == trained
    assert training.decoder.weights == pytest.approx(everything, rel=1e-3)


def test_fsdp_divides_weights_and_moments_by_its_workers():
    alone, shared = (Training(sizes(MISTRAL_7B), "full", workers=workers) for workers in (1, 8))
    per_layer = 2 * shared.decoder.layer_weights // 32 * 4
    assert shared.fixed == shared.decoder.weights * 16 // 8 + per_layer
    assert shared.fixed < alone.fixed / 6


def test_configs_by_other_names_and_with_experts_are_read_and_others_are_unknown():
    gpt2 = decoder_of({"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "tie_word_embeddings": True})
    assert gpt2 == Decoder(768, 12, 12, 12, 64, 3072, 50257, True, 4)
    mixtral = sizes({**MISTRAL_7B, "num_local_experts": 8, "num_experts_per_tok": 2})
    assert mixtral.weights == pytest.approx(46.7e9, rel=0.01)
    assert mixtral.active == 2
    assert decoder_of({"model_type": "mamba", "hidden_size": 768}) is None
