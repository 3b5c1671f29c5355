"""The gate, asked about a request that nobody sent: for people who want to know why."""
