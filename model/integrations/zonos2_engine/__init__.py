"""The official zonos2 engine: its model, its server, its offline API."""
