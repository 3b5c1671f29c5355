"""The files under deploy/ work: checked by their published schema or by the program that reads them."""
