"""The append-only record of a run on disk: what is durable, what resumes, what is read back."""
