"""Generation: prompts in, answers out, with transformers or vLLM."""
