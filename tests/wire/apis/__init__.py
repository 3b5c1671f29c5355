"""The five public APIs, each reproduced by one file of configuration."""
