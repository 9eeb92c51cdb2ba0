"""What a finetune takes of a GPU's memory, from its model's config alone: counted, before anything is loaded. Pure.

Weights, gradients and Adam's two moments are 16 bytes per weight that trains in float32 (Rajbhandari et al. 2020,
"ZeRO", arXiv 1910.02054, section 3.1, with the master copy as the only one). Activations are counted tensor by tensor
as Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) do for GPT, here for the decoder that transformers'
Llama, Mistral and Qwen share (RMSNorm in float32, rotary embeddings, grouped heads, gated MLP) and for which of its
weights train: a frozen linear module does not keep its input. Other decoders are close to it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

PROJECTIONS = frozenset(
    {
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    }
)
"""The linear modules of such a layer, each with the module that it lies in."""
_HALF = ("bfloat16", "float16")
_TRAINED = 16
"""Bytes per weight that trains: float32 itself, its gradient, two moments of Adam."""


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder. ``itemsize`` are the bytes of a weight in its files.

    ``active`` of its ``experts`` work on a token, each ``mlp`` wide; a dense model is one expert.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocabulary: int
    tied: bool
    itemsize: int
    experts: int = 1
    active: int = 1

    @property
    def queries(self) -> int:
        """Features of all heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Features of all key heads together; values have as many."""
        return self.kv_heads * self.head_size

    @property
    def attention_weights(self) -> int:
        """Weights of all layers' attention projections."""
        return self.layers * 2 * self.hidden * (self.queries + self.keys)

    @property
    def layer_weights(self) -> int:
        """Weights of all layers, attention included."""
        return self.attention_weights + self.layers * self.hidden * 3 * self.mlp * self.experts

    @property
    def weights(self) -> int:
        """All weights; norms and biases are left out."""
        return self.layer_weights + self.vocabulary * self.hidden * (1 if self.tied else 2)


def decoder_of(config: Mapping[str, Any]) -> Decoder | None:
    """Return the sizes in a transformers config, None if it lacks one of them."""

    def size(*names: str) -> int | None:
        return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), None)

    hidden, layers = size("hidden_size", "n_embd", "d_model"), size("num_hidden_layers", "n_layer", "num_layers")
    heads, vocabulary = size("num_attention_heads", "n_head", "num_heads"), size("vocab_size")
    if not hidden or not layers or not heads or not vocabulary:
        return None
    dense = size("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    experts = size("num_local_experts", "num_experts", "n_routed_experts") or 1
    return Decoder(
        hidden,
        layers,
        heads,
        size("num_key_value_heads") or heads,
        size("head_dim") or hidden // heads,
        (size("moe_intermediate_size") or dense) if experts > 1 else dense,
        vocabulary,
        config.get("tie_word_embeddings") is True,
        2 if str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") in _HALF else 4,
        experts,
        (size("num_experts_per_tok") or 1) if experts > 1 else 1,
    )


@dataclass(frozen=True)
class Batch:
    """A micro-batch: ``tokens`` in all with padding, ``rows``, the ``longest`` row, logits at ``kept`` positions.

    ``masked`` if rows of unlike lengths are padded, which takes a mask of length x length per row.
    """

    tokens: int
    rows: int
    longest: int
    kept: int
    masked: bool = False


@dataclass(frozen=True)
class Training:
    """What of a decoder trains, and in what types.

    ``targets`` are the modules with an adapter of ``rank``, for method "lora"; ``mixed`` is autocast to bfloat16, else
    all is float32; ``workers`` above 1 share weights and optimizer (FSDP), every weight of theirs in float32.
    """

    decoder: Decoder
    method: str
    targets: Collection[str] = ()
    rank: int = 0
    mixed: bool = True
    workers: int = 1

    @property
    def trained(self) -> int:
        """Weights that train."""
        decoder = self.decoder
        if self.method == "lora":
            wide = {
                "q_proj": decoder.queries,
                "k_proj": decoder.keys,
                "v_proj": decoder.keys,
                "o_proj": decoder.queries,
            }
            each = (decoder.hidden + wide.get(target, decoder.mlp * decoder.experts) for target in self.targets)
            return decoder.layers * self.rank * sum(each)
        return decoder.attention_weights if self.method == "attention" else decoder.weights

    @property
    def fixed(self) -> int:
        """Bytes on one GPU whatever the batch: weights, gradients, moments, and autocast's copies in bfloat16.

        FSDP divides all but the one layer that it gathers ahead of the one at work.
        """
        decoder, trained = self.decoder, self.trained
        frozen = (decoder.weights if self.method == "lora" else decoder.weights - trained) * self._stored
        copies = trained * 2 if self.mixed else 0
        gathered = 2 * decoder.layer_weights // decoder.layers * self._stored if self.workers > 1 else 0
        return (frozen + trained * _TRAINED) // self.workers + (copies if self.workers == 1 else 0) + gathered

    def kept(self, batch: Batch, checkpointing: bool = False) -> int:
        """Bytes that autograd keeps of a micro-batch; with gradient ``checkpointing`` the layers' inputs alone."""
        features = batch.tokens * self.decoder.hidden
        layer = features * self._residual if checkpointing else self._layer(batch)
        # The last norm is one more. Where embeddings do not train, the first one is one less, if it is kept at all.
        ends = features * (4 + self._residual) if self.method == "full" else features * 4 if checkpointing else 0
        return self.decoder.layers * layer + ends

    def activations(self, batch: Batch, checkpointing: bool = False) -> int:
        """Bytes that a micro-batch adds at the peak, which is where the backward pass begins.

        Beside what autograd keeps: as much again as one layer keeps, for the gradients in it; that layer itself if
        ``checkpointing`` computes it anew; logits and what their loss keeps of them; the mask.
        """
        layer = self._layer(batch) * (2 if checkpointing else 1)
        logits = batch.kept * self.decoder.vocabulary * (self._computed + 12)  # and in float32, softmax, gradient
        mask = batch.rows * batch.longest**2 if batch.masked else 0
        return self.kept(batch, checkpointing) + layer + logits + mask

    def peak(self, batch: Batch, checkpointing: bool = False) -> int:
        """Bytes on one GPU with this micro-batch, without what CUDA itself and fragmentation take."""
        return self.fixed + self.activations(batch, checkpointing)

    @property
    def _stored(self) -> int:
        """Bytes of a frozen weight."""
        return self.decoder.itemsize if self.mixed and self.workers == 1 and self.method != "full" else 4

    @property
    def _computed(self) -> int:
        """Bytes of what linear modules and attention compute."""
        return 2 if self.mixed else 4

    @property
    def _residual(self) -> int:
        """Bytes of a feature between layers: it has the type of the embeddings."""
        return self._stored

    def _layer(self, batch: Batch) -> int:
        """Bytes that the backward pass needs of one layer."""
        # A mask is added to the scores in the type that is computed in, anew in every layer.
        mask = batch.rows * batch.longest**2 * self._computed if batch.masked else 0
        return batch.tokens * self._per_token(batch.masked) + mask

    def _per_token(self, masked: bool) -> int:
        """Bytes that the backward pass keeps of one token in one layer."""
        decoder, full = self.decoder, self.method == "full"
        hidden, mlp = decoder.hidden, decoder.mlp * decoder.active
        norms = 2 * (4 * hidden + 4) + (2 * hidden * self._residual if full else 0)
        # What linear modules keep of their inputs: one tensor for those that share an input, unless each casts its own.
        shared = not self.mixed
        if full:
            inputs = (2 if shared else 5) * hidden + mlp
        elif self.method == "attention":
            inputs = hidden
        else:
            inputs = self._adapter_inputs(shared)
        keys = decoder.queries if masked else decoder.keys  # a mask makes sdpa repeat keys and values for every head
        attention = 2 * decoder.queries + 2 * keys
        return norms + 4 * decoder.heads + self._computed * (inputs + attention + 3 * mlp)

    def _adapter_inputs(self, shared: bool) -> int:
        """Features that adapters keep of a token: their inputs (peft casts each to float32), and their ranks."""
        decoder = self.decoder
        mlp = decoder.mlp * decoder.active
        wide = {"o_proj": 0 if shared else decoder.queries, "down_proj": mlp}
        sources = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "gate_proj": "y", "up_proj": "y"}
        once = {sources.get(target, target) if shared else target: target for target in self.targets}
        return sum(wide.get(target, decoder.hidden) for target in once.values()) + self.rank * len(self.targets)
