"""Real servers for development and tests: started on free ports, stopped by process id."""
