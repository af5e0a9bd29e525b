"""Reading models: where they come from, their files, families, embeddings, norms and vocabularies."""
