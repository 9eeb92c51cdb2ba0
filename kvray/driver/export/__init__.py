"""What leaves a store: finetunes, datasets and mixtures as files that other programs read, with their cards."""
