"""What each command of the console script does; `freshrank.cli` has their options."""
