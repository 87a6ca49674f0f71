"""The shared model: loaded and quantized once, with LoRA for many adapters in one batch."""
