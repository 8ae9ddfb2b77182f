"""The only package that knows about accelerate, deepspeed and torch.distributed."""
