"""Makes the command lines that start inference servers."""

from typing import Literal

EngineName = Literal["vllm", "sglang", "llama-server"]
