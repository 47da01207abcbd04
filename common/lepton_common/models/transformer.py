"""A small Transformer that classifies texts, whole or by low-rank adapters on frozen weights."""

import math

import torch
from torch import nn

from lepton_common.models.frozen import draw_frozen
from lepton_common.models.tokens import PADDING, VOCABULARY, Tokens

_WIDTH, _HEADS, _BLOCKS, _RANK = 32, 4, 2, 4


class _Adapter(nn.Module):
    """A product of two narrow matrices (LoRA, Hu et al. 2022), which begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(_WIDTH, _RANK, bias=False)
        self.up = nn.Linear(_RANK, _WIDTH, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = self.up(self.down(values))
        return adapted


class _Block(nn.Module):
    """Attention and a perceptron, each normalised before and added (Xiong et al. 2020).

    Built of linear layers, whose gradients can be kept apart by rule. All names but those of
    adapters are the same with and without them.
    """

    def __init__(self, *, adapted: bool) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.query, self.key = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.value, self.out = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(_WIDTH, 2 * _WIDTH), nn.ReLU(), nn.Linear(2 * _WIDTH, _WIDTH)
        )
        self.query_adapter = _Adapter() if adapted else None
        self.value_adapter = _Adapter() if adapted else None

    def forward(self, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Returns shape [n, T, width]; ``hidden``, shape [n, T], is True at padding."""
        read = self.before_attention(values)
        query, value = self.query(read), self.value(read)
        if self.query_adapter is not None and self.value_adapter is not None:
            query, value = query + self.query_adapter(read), value + self.value_adapter(read)
        query, key, value = (_heads(part) for part in (query, self.key(read), value))
        fit = query @ key.transpose(2, 3) / math.sqrt(_WIDTH // _HEADS)
        # Not minus infinity, of which a text of nothing but padding would have no softmax.
        weights = fit.masked_fill(hidden[:, None, None, :], -1e4).softmax(3)
        values = values + self.out((weights @ value).transpose(1, 2).flatten(2))
        added: torch.Tensor = values + self.mlp(self.before_mlp(values))
        return added


def _heads(values: torch.Tensor) -> torch.Tensor:
    """Returns shape [n, heads, T, width / heads]."""
    return values.unflatten(2, (_HEADS, -1)).transpose(1, 2)


class Transformer(nn.Module):
    """Token and position embeddings, two blocks, the mean over the text, and a linear head.

    Attributes:
        head: the last layer, which gives the logits.
    """

    def __init__(self, length: int, outputs: int, *, adapted: bool) -> None:
        """Takes the length of a text, the number of logits, and whether adapters are trained."""
        super().__init__()
        self.tokens = Tokens(VOCABULARY)
        self.words = nn.Embedding(VOCABULARY, _WIDTH)
        self.places = nn.Embedding(length, _WIDTH)
        self.blocks = nn.ModuleList(_Block(adapted=adapted) for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape [n, outputs], of tokens as float32, shape [n, T]."""
        tokens = self.tokens(features)
        hidden = tokens == PADDING
        # Records first here too, so that their gradients can be told apart.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        values = self.words(tokens) + self.places(places)
        for block in self.blocks:
            values = block(values, hidden)
        kept = (~hidden).unsqueeze(2).to(values.dtype)
        mean = (self.norm(values) * kept).sum(1) / kept.sum(1).clamp(min=1.0)
        logits: torch.Tensor = self.head(mean)
        return logits


def transformer(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Texts of up to T tokens, 0 for padding: width 32, four heads, two blocks, 4,096 tokens."""
    return Transformer(input_shape[0], outputs, adapted=False)


def transformer_lora(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The same, of which only adapters of rank 4 on queries and values, and the head, are trained.

    All other weights are frozen and never travel: drawn from their names here, or read from a
    checkpoint of `transformer`; see `frozen`.
    """
    model = Transformer(input_shape[0], outputs, adapted=True)
    trained = {model.head, *(m for m in model.modules() if isinstance(m, _Adapter))}
    draw_frozen(model, {layer for top in trained for layer in top.modules()})
    return model
