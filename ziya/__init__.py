"""What data_factory, training and eval share: configs, files, manifests, packs, tokenizers, progress, errors."""
