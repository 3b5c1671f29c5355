"""What changes between two configurations, by what requests get, not by how it is written."""
