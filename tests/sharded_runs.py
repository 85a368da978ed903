"""Runs of sharded models on the CPU; no test in here."""

# FSDP2 with checkpoints in shards, and with whole ones, as fields of a recipe.
_CONFIG = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
}
FSDP2 = {"fsdp": True, "fsdp_config": {**_CONFIG, "state_dict_type": "SHARDED_STATE_DICT"}}
FSDP2_WHOLE = {"fsdp": True, "fsdp_config": {**_CONFIG, "state_dict_type": "FULL_STATE_DICT"}}
# On the CPU accelerate quietly runs DDP for FSDP, unless it takes itself for several GPUs.
ON_CPU = """
from accelerate import PartialState
from accelerate.utils import DistributedType
def begun(self, *args, _begin=PartialState.__init__, **kwargs):
    _begin(self, *args, **kwargs)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU
PartialState.__init__ = begun
"""
# Settings of the models -> fields of a recipe, and what each process runs first.
KINDS = {"DDP": ({}, ""), "FSDP2": (FSDP2, ON_CPU)}
