"""What runs: the command line, pipelines and endpoints, the only place where science, storage and Ray meet."""
