"""A decoder of Llama's shape with random weights: what one engine iteration costs on this GPU.

The work of an iteration with chunked prefill, as vLLM runs it: all tokens of the step go through
the linear layers together; prefill tokens attend to themselves, each decoding sequence to its part
of the KV cache. Captured as a CUDA graph and replayed, so that the host costs nothing. Not there:
sampling, paging, the all-reduce between shards, the scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one GPU's share of a decoder.

    Args:
        layers, hidden: of the model.
        heads, kv_heads: on this GPU.
        head_size: of one head.
        ffn: width of the feed-forward layer on this GPU.
        vocabulary: rows of the output layer on this GPU.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocabulary: int


SHAPES = {
    "llama-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "llama-70b-tp4": Shape(80, 8192, 16, 2, 128, 7168, 32064),
}


class Decoder:
    """Weights in bfloat16 on the GPU, and iterations over them."""

    def __init__(self, shape: Shape, device: str = "cuda") -> None:
        import torch

        self._torch = torch
        self.shape = shape
        self._device = device

        def weight(rows: int, columns: int) -> Any:
            made = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
            return made.normal_(0.0, columns**-0.5)

        qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_size
        self._layers = [
            (
                weight(qkv, shape.hidden),
                weight(shape.hidden, shape.heads * shape.head_size),
                weight(2 * shape.ffn, shape.hidden),
                weight(shape.hidden, shape.ffn),
            )
            for _ in range(shape.layers)
        ]
        self._out = weight(shape.vocabulary, shape.hidden)
        self._norm = torch.ones(shape.hidden, dtype=torch.bfloat16, device=device)

    def iteration(self, prefill: int, sequences: int, context: int) -> Any:
        """A captured graph of one iteration; ``replay()`` runs it.

        Args:
            prefill: tokens of one prompt in this step.
            sequences: that decode one token each.
            context: tokens of each of them in the KV cache.
        """
        torch, shape = self._torch, self.shape
        tokens = prefill + sequences
        states = torch.randn(tokens, shape.hidden, dtype=torch.bfloat16, device=self._device)
        cache = None
        if sequences:
            # One layer's cache for all layers would stay in the L2 cache: each has its own part.
            cache = torch.randn(
                *(shape.layers, 2, sequences, shape.kv_heads, context, shape.head_size),
                dtype=torch.bfloat16,
                device=self._device,
            )

        def run() -> Any:
            return self._forward(states, prefill, sequences, cache)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            graph_output = run()
        graph.kept = (states, cache, graph_output)
        return graph

    def _forward(self, states: Any, prefill: int, sequences: int, cache: Any) -> Any:
        torch, shape = self._torch, self.shape
        functional = torch.nn.functional
        heads, groups, size = shape.heads, shape.kv_heads, shape.head_size
        for number, (qkv, out, gate_up, down) in enumerate(self._layers):
            normed = functional.rms_norm(states, (shape.hidden,), self._norm)
            mixed = normed @ qkv.T
            q, k, v = mixed.split([heads * size, groups * size, groups * size], dim=-1)
            attended = torch.empty_like(q)
            if prefill:
                attended[:prefill] = (
                    functional.scaled_dot_product_attention(
                        q[:prefill].view(1, prefill, heads, size).transpose(1, 2),
                        k[:prefill].view(1, prefill, groups, size).transpose(1, 2),
                        v[:prefill].view(1, prefill, groups, size).transpose(1, 2),
                        is_causal=True,
                        enable_gqa=True,
                    )
                    .transpose(1, 2)
                    .reshape(prefill, heads * size)
                )
            if sequences:
                # The heads of a group are its queries: the cache is read once for all of them.
                asked = q[prefill:].view(sequences, groups, heads // groups, size)
                attended[prefill:] = functional.scaled_dot_product_attention(
                    asked, cache[number, 0], cache[number, 1]
                ).reshape(sequences, heads * size)
            states = states + attended @ out.T
            normed = functional.rms_norm(states, (shape.hidden,), self._norm)
            gate, up = (normed @ gate_up.T).chunk(2, dim=-1)
            states = states + (functional.silu(gate) * up) @ down.T
        # Logits of the prompt's last token and of each decoding sequence.
        last = states[max(0, prefill - 1) :]
        return last @ self._out.T
