"""The second stage: a small network that looks at a pair of embeddings and says how likely it is one picture."""
