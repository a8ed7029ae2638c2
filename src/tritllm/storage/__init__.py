"""Bytes of model folders: read locally or by ranges from the Hub, written atomically."""
