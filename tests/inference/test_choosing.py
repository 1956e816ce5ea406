"""The next token of each row: a row's settings are its own, and asking for more beside it changes nothing."""

from __future__ import annotations

import torch

from yangtuo.inference.choosing import Chooser, choose
from yangtuo.inference.engine import Sampling


def test_a_bias_moves_its_own_row_alone_whatever_else_is_asked() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]] * 4)
    biased = ((1, -100.0), (3, 2.5))
    settings = [
        Sampling(),
        Sampling(logit_bias=biased),
        Sampling(logit_bias=biased, logprobs=2),
        Sampling(logit_bias=((0, 50.0),), presence_penalty=1.0),
    ]
    tokens = choose([Chooser([1, 2], one) for one in settings], logits.clone())
    assert [token.id for token in tokens] == [1, 2, 2, 0]
    # Reported probabilities are the model's own, before any setting.
    assert tokens[2].top[0][0] == 1
    torch.testing.assert_close(tokens[2].logprob, float(logits[2].log_softmax(-1)[2]))
