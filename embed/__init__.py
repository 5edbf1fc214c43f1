"""Images to embeddings: decoding, the embedder and its training. The only package that imports Keras."""
