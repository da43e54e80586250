"""Everything that learns: joiner, trainer, publisher."""
