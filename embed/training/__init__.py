"""How the `vgg_copy` embedder is trained: photos, random edits, loss and the trainer."""
