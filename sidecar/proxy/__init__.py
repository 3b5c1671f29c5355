"""The data listener:

client connections, the exchange of a request and its response, and the pool of upstream connections.
"""
