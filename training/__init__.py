"""Three training stages on Megatron-core and DeepSpeed (in preparation)."""
