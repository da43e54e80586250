"""Event log and parameter channel, each behind a protocol with several transports."""
