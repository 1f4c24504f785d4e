import pytest
import torch
import torch.nn.functional as F
from training_support import CODES, DIM, LENGTH, caps, centers, some_tokens, tiny_model

from genmodel.condition import Condition
from genmodel.losses import batch_loss, early_weights, embedding_loss, token_losses


def test_losses_follow_the_order() -> None:
    tokens = some_tokens(2)
    order = torch.stack([torch.randperm(LENGTH) for _ in range(2)])
    logits = F.one_hot(tokens.gather(1, order), CODES).float() * 50
    assert token_losses(logits, tokens, order).max() < 1e-6
    assert token_losses(logits, tokens).max() > 1


def test_early_weights() -> None:
    weights = early_weights(9, 3.0)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] / weights[-1] == pytest.approx(4.0)
    assert torch.equal(early_weights(9, 0.0), torch.ones(9))


def test_parts_add_up_to_the_whole() -> None:
    losses, steps, rows = torch.rand(6, LENGTH), early_weights(LENGTH, 1.0), torch.tensor([1.0, 0, 1, 1, 0, 1])
    whole = batch_loss(losses, steps, rows)
    parts = batch_loss(losses[:2], steps, rows[:2]) * 2 / 6 + batch_loss(losses[2:], steps, rows[2:]) * 4 / 6
    assert whole == pytest.approx(float(parts))
    changed = losses.clone()
    changed[1] = 100
    assert batch_loss(changed, steps, rows) == whole


class Codec:
    """A decoder and an encoder with a known answer: the image is the codes, the embedding a matrix of them."""

    def __init__(self) -> None:
        self.matrix = torch.randn(LENGTH, DIM, generator=torch.Generator().manual_seed(0))

    def decode(self, probabilities: torch.Tensor) -> torch.Tensor:
        hard = F.one_hot(probabilities.argmax(-1), CODES).float()
        straight = hard + probabilities - probabilities.detach()
        return (straight @ torch.linspace(0, 1, CODES)).view(-1, 1, 3, 3).expand(-1, 3, 3, 3)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(images[:, 0].flatten(1) @ self.matrix, dim=1)


@pytest.mark.parametrize("ordered", [False, True])
def test_embedding_loss_is_zero_for_the_right_image(ordered: bool) -> None:
    codec, tokens = Codec(), some_tokens(4)
    right = F.one_hot(tokens, CODES).float() * 50
    own = Condition.embedding(codec.embed(codec.decode(right)))
    order = torch.stack([torch.randperm(LENGTH) for _ in range(4)]) if ordered else None
    logits = right if order is None else right.gather(1, order[:, :, None].expand_as(right))
    assert embedding_loss(logits, own, codec.decode, codec.embed, order) == pytest.approx(0.0, abs=1e-5)
    wrong = Condition.embedding(centers(4, 9))
    assert embedding_loss(logits, wrong, codec.decode, codec.embed, order) > 0.1


def test_embedding_loss_has_a_gradient_and_it_helps() -> None:
    codec, tokens = Codec(), some_tokens(4)
    own = Condition.embedding(centers(4, 9))
    logits = torch.randn(4, LENGTH, CODES, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = embedding_loss(logits, own, codec.decode, codec.embed)
    before.backward()
    assert logits.grad is not None
    assert (logits.grad.abs().amax(dim=-1) > 0).all()
    for _ in range(60):
        loss = embedding_loss(logits, own, codec.decode, codec.embed)
        logits = (logits - 20 * torch.autograd.grad(loss, logits)[0]).detach().requires_grad_()
    assert embedding_loss(logits, own, codec.decode, codec.embed) < 0.7 * before
    model = tiny_model(condition="embedding", reconstruct_embedding=True)
    embedding_loss(model(tokens, own), own, codec.decode, codec.embed).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.blocks.parameters())


def test_null_rows_have_no_embedding_to_reach() -> None:
    codec, logits = Codec(), torch.randn(4, LENGTH, CODES, requires_grad=True)
    assert embedding_loss(logits, caps(4, 2.0), codec.decode, codec.embed) == 0
    half = Condition.cat([Condition.embedding(centers(2)), Condition.null(2, DIM)])
    embedding_loss(logits, half, codec.decode, codec.embed).backward()
    assert logits.grad is not None
    assert logits.grad[:2].any()
    assert not logits.grad[2:].any()
