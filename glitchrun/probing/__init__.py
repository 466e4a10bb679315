"""The engine: prompts as token ids, one shared prefix cache, batched verification and sampling."""
