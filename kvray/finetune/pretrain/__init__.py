"""Pretraining of the bundled model, kvray-tiny."""
