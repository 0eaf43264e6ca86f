//! The llama family: Llama 1 to 3, Mistral, Qwen2 and Qwen3.
