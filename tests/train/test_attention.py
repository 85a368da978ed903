"""Which attention kernels torch may take in a training step."""

import pytest
import torch
import toys


@pytest.mark.parametrize(("packing", "allowed"), [(False, False), (True, True)])
def test_cudnns_attention_is_left_out_where_shapes_change(tmp_path, monkeypatch, packing, allowed):
    """In forward, backward and evaluation, and only there."""
    seen = []
    args = toys.config(
        tmp_path, packing=packing, max_length=32, max_steps=2, eval_strategy="steps", eval_steps=1
    )
    trainer = toys.trainer(args, eval_dataset=toys.dataset(4))

    def watch(*_):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())

    trainer.model.model.layers[0].register_forward_hook(watch)
    trainer.model.model.layers[0].register_full_backward_hook(watch)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    trainer.train()
    assert len(seen) > 4 and set(seen) == {allowed}
    assert torch.backends.cuda.cudnn_sdp_enabled()
