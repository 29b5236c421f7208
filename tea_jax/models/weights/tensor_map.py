"""Where each parameter lives in a checkpoint: names and layouts of Hugging Face and GGUF.

Our kernels are `[in, out]` and stacked over layers; a checkpoint keeps one tensor a layer, usually
`[out, in]`. A `TensorRef` says how one leaf of the parameter tree is found in such tensors, in both
directions, so that reading and writing share one table.
"""

from __future__ import annotations

import dataclasses

from tea_jax.models.config import Head, ModelConfig

Path = tuple[str, ...]
"""A leaf of the parameter tree, such as `("layers", "attention", "query", "kernel")`."""


@dataclasses.dataclass(frozen=True)
class TensorRef:
  """One leaf of the parameter tree inside a checkpoint.

  Attributes:
    name: of the tensor; holds `{layer}` where the leaf is stacked.
    transposed: stored `[out, in]` where ours is `[in, out]`.
    start, total: the leaf is the columns from `start` of a fused tensor with `total` columns (GPT-2
      fuses query, key and value); a total of 0 means that the tensor is not fused.
    interleaved_heads: heads whose rotary pairs are stored as (0, 1), (2, 3), ... instead of as two
      halves (llama GGUF); 0 for none.
    offset: stored value minus ours (1.0 for norms of Gemma in GGUF).
  """

  name: str
  transposed: bool = False
  start: int = 0
  total: int = 0
  interleaved_heads: int = 0
  offset: float = 0.0

  @property
  def stacked(self) -> bool:
    return "{layer}" in self.name


def huggingface_map(
  config: ModelConfig, *, head: Head = "causal_lm", prefix: str | None = None
) -> dict[Path, TensorRef]:
  """Every leaf of the parameter tree -> its tensors in Hugging Face's layout.

  Args:
    config: the model.
    head: what sits on the backbone.
    prefix: of the backbone's names; None for the one that HF writes.
  """
  if config.architecture == "GPT2":
    return _gpt2_map(config, head, "transformer." if prefix is None else prefix)
  prefix = "model." if prefix is None else prefix
  block = prefix + "layers.{layer}."
  refs: dict[Path, TensorRef] = {
    ("embed", "embedding"): TensorRef(prefix + "embed_tokens.weight"),
    ("layers", "input_norm", "scale"): TensorRef(block + "input_layernorm.weight"),
    ("layers", "post_attention_norm", "scale"): TensorRef(
      block + "post_attention_layernorm.weight"
    ),
    ("final_norm", "scale"): TensorRef(prefix + "norm.weight"),
  }
  for ours, theirs, bias in (
    ("query", "q_proj", config.attention_bias),
    ("key", "k_proj", config.attention_bias),
    ("value", "v_proj", config.attention_bias),
    ("output", "o_proj", config.output_bias),
  ):
    name = f"{block}self_attn.{theirs}"
    refs |= _linear(("layers", "attention", ours), name, transposed=True, bias=bias)
  if config.query_key_norm:
    for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
      refs["layers", "attention", ours, "scale"] = TensorRef(f"{block}self_attn.{theirs}.weight")
  for ours in ("gate", "up", "down"):
    name = f"{block}mlp.{ours}_proj"
    refs |= _linear(("layers", "mlp", ours), name, transposed=True, bias=config.mlp_bias)
  return refs | _head(config, head)


def gguf_map(config: ModelConfig) -> dict[Path, TensorRef]:
  """Every leaf of the parameter tree -> its tensors in a GGUF file of llama.cpp's converter."""
  gpt2 = config.architecture == "GPT2"
  # llama.cpp rotates neighbouring pairs for the llama family only; the converter permutes for it.
  interleaved = config.architecture in ("Llama", "Mistral")
  offset = 1.0 if config.architecture == "Gemma" else 0.0
  inner = config.num_heads * config.head_dim
  refs: dict[Path, TensorRef] = {("embed", "embedding"): TensorRef("token_embd.weight")}
  if config.position == "learned":
    refs["embed", "position"] = TensorRef("position_embd.weight")
  for ours, name in (
    (("layers", "input_norm"), "blk.{layer}.attn_norm"),
    (("layers", "post_attention_norm"), "blk.{layer}.ffn_norm"),
    (("final_norm",), "output_norm"),
  ):
    refs[*ours, "scale"] = TensorRef(f"{name}.weight", offset=offset)
    if config.norm == "layer":
      refs[*ours, "bias"] = TensorRef(f"{name}.bias")
  for index, (ours, letter) in enumerate((("query", "q"), ("key", "k"), ("value", "v"))):
    heads = {"query": config.num_heads, "key": config.num_kv_heads}.get(ours, 0)
    refs |= _linear(
      ("layers", "attention", ours),
      "blk.{layer}.attn_qkv" if gpt2 else f"blk.{{layer}}.attn_{letter}",
      transposed=True,
      bias=config.attention_bias,
      start=index * inner if gpt2 else 0,
      total=3 * inner if gpt2 else 0,
      interleaved_heads=heads if interleaved else 0,
    )
  if config.query_key_norm:
    for ours, letter in (("query_norm", "q"), ("key_norm", "k")):
      refs["layers", "attention", ours, "scale"] = TensorRef(
        f"blk.{{layer}}.attn_{letter}_norm.weight"
      )
  output = ("layers", "attention", "output")
  refs |= _linear(output, "blk.{layer}.attn_output", transposed=True, bias=config.output_bias)
  for ours in ("gate", "up", "down") if config.gated_mlp else ("up", "down"):
    name = f"blk.{{layer}}.ffn_{ours}"
    refs |= _linear(("layers", "mlp", ours), name, transposed=True, bias=config.mlp_bias)
  if not config.tie_embeddings:
    refs["lm_head", "kernel"] = TensorRef("output.weight", transposed=True)
  return refs


def _gpt2_map(config: ModelConfig, head: Head, prefix: str) -> dict[Path, TensorRef]:
  block, inner = prefix + "h.{layer}.", config.num_heads * config.head_dim
  refs: dict[Path, TensorRef] = {
    ("embed", "embedding"): TensorRef(prefix + "wte.weight"),
    ("embed", "position"): TensorRef(prefix + "wpe.weight"),
  }
  for ours, name in (
    (("layers", "input_norm"), block + "ln_1"),
    (("layers", "post_attention_norm"), block + "ln_2"),
    (("final_norm",), prefix + "ln_f"),
  ):
    refs[*ours, "scale"] = TensorRef(f"{name}.weight")
    refs[*ours, "bias"] = TensorRef(f"{name}.bias")
  # HF's Conv1D keeps its weights `[in, out]`, as we do, so nothing is transposed here.
  for index, ours in enumerate(("query", "key", "value")):
    path, name = ("layers", "attention", ours), block + "attn.c_attn"
    refs |= _linear(path, name, bias=True, start=index * inner, total=3 * inner)
  refs |= _linear(("layers", "attention", "output"), block + "attn.c_proj", bias=True)
  refs |= _linear(("layers", "mlp", "up"), block + "mlp.c_fc", bias=True)
  refs |= _linear(("layers", "mlp", "down"), block + "mlp.c_proj", bias=True)
  return refs | _head(config, head)


def _linear(
  path: Path,
  name: str,
  *,
  bias: bool,
  transposed: bool = False,
  start: int = 0,
  total: int = 0,
  interleaved_heads: int = 0,
) -> dict[Path, TensorRef]:
  """Kernel and, if there is one, bias of a projection."""
  ref = TensorRef(f"{name}.weight", transposed, start, total, interleaved_heads)
  refs = {(*path, "kernel"): ref}
  if bias:
    refs[*path, "bias"] = dataclasses.replace(ref, name=f"{name}.bias", transposed=False)
  return refs


def _head(config: ModelConfig, head: Head) -> dict[Path, TensorRef]:
  if head == "sequence_classifier":
    return {("score", "kernel"): TensorRef("score.weight", transposed=True)}
  if config.tie_embeddings:
    return {}
  return {("lm_head", "kernel"): TensorRef("lm_head.weight", transposed=True)}
